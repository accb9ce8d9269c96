"""Says which extra of bitjax to install where a package that is optional is missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Guards an import of an optional package; without it, `what` needs the extra `name`."""
    try:
        yield
    except ImportError as error:
        raise missing(name, what, error) from error


def missing(name: str, what: str, error: ImportError) -> ImportError:
    """The error that says how to install what the import of an optional package did not find."""
    package = (error.name or "a package").partition(".")[0]
    reason = "" if isinstance(error, ModuleNotFoundError) else f" ({' '.join(str(error).split())})"
    return ImportError(f"{what} needs {package}{reason}: pip install 'bitjax[{name}]'.")
