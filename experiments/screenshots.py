"""Makes the pictures of the comparison page that the documentation shows, from kept results.

python -m experiments.screenshots
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bitjax.cli.arguments import Parser
from bitjax.cli.compare import main as compare
from bitjax.cli.front import front_door
from experiments.browser import MISSING, Browser, find_chromium

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "cifar10" / "resnet20_250"  # every method, the same number of steps
_LARGEST = 200_000  # bytes of a picture
_MAP = "document.querySelector('#map-0').scrollIntoView()"


class Picture(NamedTuple):
    """A picture: the size of the window, and what is done in it before it is taken."""

    name: str
    width: int
    height: int
    script: str = ""


PICTURES = (
    Picture("report", 1280, 1180),
    Picture("report_map", 1280, 560, _MAP),
    Picture("report_phone", 390, 844),
)


def draw(picture: Picture, page: Path, folder: Path, browser: Browser) -> Path:
    """Takes a picture of the page into the folder."""
    browser.open(page, width=picture.width, height=picture.height)
    browser.run(picture.script or "0")
    path = folder / f"{picture.name}.png"
    browser.screenshot(path)
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{path} must have at most {_LARGEST:,} bytes, got {size:,}.")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Draws every picture anew."""
    parser = Parser(__doc__, "python -m experiments.screenshots")
    parser.add_argument("--out", default=str(ROOT / "docs" / "images"), help="folder of pictures")
    folder = Path(parser.read(argv).out)
    if not folder.is_dir():
        raise ValueError(f"--out must be a folder that is there, got {str(folder)!r}.")
    if find_chromium() is None:
        raise ValueError(f"drawing {MISSING}.")
    with tempfile.TemporaryDirectory() as away, Browser(Path(away) / "profile") as browser:
        page = Path(away) / "page.html"
        compare([str(RUNS), f"--out={page}"])
        for picture in PICTURES:
            print(draw(picture, page, folder, browser))


if __name__ == "__main__":
    with front_door():
        main()
