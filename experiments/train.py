"""`bitjax train`, in a checkout: see `bitjax/cli/train.py`."""

from bitjax.cli.train import run

if __name__ == "__main__":
    run()
