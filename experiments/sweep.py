"""`bitjax sweep`, in a checkout: see `bitjax/cli/sweep.py`."""

from bitjax.cli.sweep import run

if __name__ == "__main__":
    run()
