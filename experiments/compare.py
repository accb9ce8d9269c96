"""`bitjax compare`, in a checkout: see `bitjax/cli/compare.py`."""

import sys

from bitjax.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
