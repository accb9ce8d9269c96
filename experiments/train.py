"""`bitjax train`, in a checkout: see `bitjax/cli/train.py`."""

import sys

from bitjax.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
