"""Draws the pictures of the documentation from committed results: docs/images/.

    python -m experiments.gallery             # all of them, in half a minute
    python -m experiments.gallery overview    # some of them

They read results/ and the committed notebooks. The pictures of the comparison page are drawn by
`experiments.screenshots`, that of distortion by `experiments.rate_distortion`.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.files.writing import replacing, write_text
from bitjax.report import plots
from bitjax.report.comparison import Group, compare
from bitjax.report.drawing import draw_graph
from bitjax.report.tables import terminal as terminal_table
from bitjax.runs.records import RunRecord, read_runs

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
MOST = 200_000  # bytes of a picture
_TABLE = ROOT / "results" / "cifar10" / "resnet20_250"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "bitjax", "font.size": 9, "axes.titlesize": 10,
          "axes.titleweight": "bold", "axes.spines.top": False,
          "axes.spines.right": False}  # fmt: skip


def overview() -> Iterator[Path]:
    """Accuracy against cost of every method, and one method's bits; wide, and narrow for phones."""
    group, runs = _read(_TABLE)
    chosen = next(run for run in runs if run.name.endswith("bitpruning_3"))
    for name, rows, size in (("overview", 1, (8.4, 3.1)), ("overview_narrow", 2, (4.4, 5.8))):
        with matplotlib.rc_context(_STYLE):
            _, axes = plt.subplots(rows, 3 - rows, figsize=size, layout="constrained")
            left = plots.pareto(group, "bops", axes=axes[0])
            scores = sorted(row.figures[group.score.key].mean for row in group.rows)
            top = 100 * scores[-1]
            left.set(ylim=(top - 12, top + 1), title="Every method from one float ResNet-20")
            left.set(xlabel="million bit operations for one image")
            left.legend(frameon=False, ncols=2, fontsize=8, loc="lower right")
            right = plots.bits_per_layer(chosen.sites, axes=axes[1])
            right.set(title="The bits that BitPruning gives each layer")
            _name_stages(right)
            yield _save(IMAGES / f"{name}.svg")


def graph() -> Iterator[Path]:
    """The digits' network with the bits that a committed run learned, as it is deployed."""
    import jax

    import bitjax as bj
    from bitjax.export.graph import graph_of
    from bitjax.models import SmallCNN

    run = read_runs([ROOT / "results" / "digits" / "bitpruning_costs" / "seed0"])[0][0]
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    learned = {site.site: site.integer for site in run.sites}
    model = bj.Quantized(SmallCNN(), [bj.rule(".*", bj.uniform(bits=8))])
    variables = bj.with_bits(model.init(jax.random.key(1), x), learned)
    text = draw_graph(graph_of(bj.deploy(model, variables, x), x), f"The graph of {run.name}")
    yield _write(IMAGES / "graph.svg", text)


def terminal() -> Iterator[Path]:
    """What `bitjax compare results/digits` prints."""
    group, runs = _read(ROOT / "results" / "digits")
    console = Console(record=True, width=100, file=io.StringIO(), highlight=False)
    console.print(terminal_table(group, compare(runs), console.width))
    text = console.export_svg(title="bitjax compare results/digits", unique_id="terminal")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)  # from the network
    yield _write(
        IMAGES / "terminal.svg", text.replace("Fira Code", "ui-monospace, Menlo, Consolas")
    )


def notebooks() -> Iterator[Path]:
    """Planes of an activation, and how a language model goes on, as the notebooks show them."""
    picture = next(o["data"]["image/png"] for o in _outputs("03") if "image/png" in o["data"])
    with replacing(IMAGES / "planes.png") as file:
        file.write(base64.b64decode(picture))
    yield IMAGES / "planes.png"
    said = next(o["text"] for o in _outputs("08") if "\nnearest, 3 bits:\n" in o.get("text", ""))
    yield _write(IMAGES / "continuation.txt", f"{said.strip()}\n")


PICTURES: tuple[Callable[[], Iterator[Path]], ...] = (
    overview, graph, terminal, notebooks,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the pictures that are named, or all; one that is too large is an error."""
    parser = Parser(__doc__, "python -m experiments.gallery")
    names = [draw.__name__ for draw in PICTURES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    args = parser.read(argv)
    if unknown := [name for name in args.names if name not in names]:
        raise ValueError(f"there is no picture {unknown[0]!r}: choose among {', '.join(names)}.")
    IMAGES.mkdir(exist_ok=True)
    for draw in PICTURES:
        if draw.__name__ in args.names or not args.names:
            for path in draw():
                size = path.stat().st_size
                print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")
                if size > MOST:
                    raise ValueError(f"{path.name} must have at most {MOST} bytes, got {size}.")


def _read(folder: Path) -> tuple[Group, list[RunRecord]]:
    """The one group of a folder's runs, and the runs in the group's order."""
    runs, _ = read_runs([folder])
    group = compare(runs).groups[0]
    return group, [run for row in group.rows for run in row.runs]


def _name_stages(axes: Any) -> None:
    """Names on the axis of layers: those of the stages, each below its middle."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(axes.get_xticklabels()):
        places.setdefault(label.get_text().partition("/")[0], []).append(place)
    axes.set_xticks([np.mean(own) for own in places.values()], list(places), rotation=0)


def _save(path: Path) -> Path:
    file = io.BytesIO()
    plt.gcf().savefig(file, format="svg", metadata={"Date": None})
    plt.close(plt.gcf())
    return _write(path, file.getvalue().decode())


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def _outputs(notebook: str) -> Iterator[dict[str, Any]]:
    """Every output of a committed notebook."""
    path = next((ROOT / "notebooks").glob(f"{notebook}_*.ipynb"))
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("text", ()))
            yield {"text": text, "data": output.get("data", {})}


if __name__ == "__main__":
    matplotlib.use("Agg")
    with front_door(compiles=True):
        main()
