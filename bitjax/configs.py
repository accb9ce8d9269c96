"""The configs that bitjax ships, as `bitjax.configs.digits.bitpruning` and its like.

They lie at the top of a checkout, as a project's own do, and in `bitjax/configs` once installed.
"""

from pathlib import Path

_HERE = Path(__file__).parent
FOLDER = next(p for p in (_HERE / "configs", _HERE.parent / "configs") if (p / "base.py").is_file())
__path__ = [str(FOLDER)]  # this makes a package of the file
