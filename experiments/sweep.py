"""`bitjax sweep`, in a checkout: see `bitjax/cli/sweep.py`."""

import sys

from bitjax.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
