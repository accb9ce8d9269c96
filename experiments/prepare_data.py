"""`bitjax prepare`, in a checkout: see `bitjax/cli/prepare.py`."""

from bitjax.cli.prepare import run

if __name__ == "__main__":
    run()
