"""`bitjax compare`, in a checkout: see `bitjax/cli/compare.py`."""

from bitjax.cli.compare import run

if __name__ == "__main__":
    run()
