"""`bitjax inspect`, in a checkout: see `bitjax/cli/inspect.py`."""

from bitjax.cli.inspect import run

if __name__ == "__main__":
    run()
