"""What tests of whole runs share."""

import pytest

from bitjax.files.programs import keep_programs
from tests.kept import cache_in


@pytest.fixture(scope="module")
def programs_are_compiled_once(tmp_path_factory):
    """A resumed run compiles what the first one did; here it reads that from a file."""
    with cache_in(tmp_path_factory.mktemp("cache")):
        keep_programs()
        yield
