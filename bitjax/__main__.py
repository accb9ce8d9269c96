"""The command `bitjax`, as `python -m bitjax`."""

from bitjax.cli.main import main

if __name__ == "__main__":
    main()
