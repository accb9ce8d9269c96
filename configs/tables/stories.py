"""A pretrained language model with few bits. Command (minutes on 2 cores):

python -m experiments.reproduce stories
"""

from bitjax.configs.stories.float import STEPS

NAMES = (
    "float",
    f"float:{STEPS}",
    "uniform_w4",
    "uniform_w3",
    f"uniform_w3:{STEPS}",
    "bitpruning_w",
)


def path(name):
    """The config file of a name, with the variant behind it."""
    stem, colon, variant = name.partition(":")
    return f"configs/stories/{stem}.py{colon}{variant}"


TABLES = {
    "stories": {
        "title": "A pretrained language model with few bits",
        "about": "The published 260 k-parameter Llama on TinyStories. Perplexity is that of the "
        "first 120 test documents, each alone, its first 512 tokens. Rows without steps are not "
        f"trained; the others have {STEPS} steps with the float network as teacher.",
        "seeds": (0,),
        "configs": tuple(map(path, NAMES)),
        "baseline": "stories/float",
        "columns": ("bits_weights", "bits_activations", "model_bytes", "cache_bytes_per_token",
                    "steps", "wall_seconds"),
        "cost": "model_bytes",
    }
}  # fmt: skip
