"""A pretrained language model with few bits. Command (an hour on 2 cores, nothing beside it):

python -m experiments.reproduce stories
"""

from bitjax.configs.stories.float import DRAWN, STEPS

DRAW = ("experiments.draw", "stories/float", "--documents=8000", "--length=384")
NAMES = (
    "float",
    "uniform_w4",
    "uniform_w3",
    "solved_w4:gptq",
    "solved_w3:gptq",
    "solved_w2:gptq",
    "solved_w4",
    "solved_w3",
    "solved_w2",
    f"uniform_w3:{STEPS}",
    "bitpruning_w",
    "bitpruning_wa",
    "cache_4",
)


def path(name):
    """The config file of a name, with the variant behind it."""
    stem, colon, variant = name.partition(":")
    return f"configs/stories/{stem}.py{colon}{variant}"


TABLES = {
    "stories": {
        "title": "A pretrained language model with few bits",
        "about": "The published 260 k-parameter Llama on TinyStories. Perplexity is that of the "
        "first 120 test documents, each alone, its first 512 tokens. The embedding, which is the "
        "head too, stays float. Rows without steps are not trained. The others learn from the "
        "float network alone, which would teach itself nothing: it is its own control.",
        "small": True,
        "seeds": (0,),
        "configs": tuple(map(path, NAMES)),
        "baseline": "stories/float",
        "columns": ("bits_weights", "bits_activations", "model_bytes", "cache_bytes_per_token",
                    "steps", "wall_seconds"),
        "cost": "model_bytes",
        "files": {DRAWN: DRAW},
    }
}  # fmt: skip
