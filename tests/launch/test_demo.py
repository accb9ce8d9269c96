"""The main job of `make demo`, with fewer steps."""

import jax
import pytest

from bitjax.cli.main import main
from tests.counted import compiling
from tests.kept import cache_in


@pytest.mark.slow
def test_the_demo_compiles_few_programs_and_the_doctor_has_nothing_to_say(tmp_path, capsys):
    jax.clear_caches()  # of the tests before
    with cache_in(tmp_path / "cache"), compiling() as programs:
        main(
            [
                "train",
                "digits/bitpruning",
                f"--workdir={tmp_path / 'run'}",
                "--config.method.steps=10",
            ]
        )
    shown = capsys.readouterr().out
    assert "average bits" in shown and "doctor" not in shown and "warning" not in shown
    # 96 of them, where each operation on the host was one, and attach's, the doctor's and deploy's
    # questions were several; 38 where this was written.
    assert len(programs) <= 40
