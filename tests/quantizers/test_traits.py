"""What quantizers say of themselves, and that nothing else of them decides anything."""

import ast
import re
from pathlib import Path

import pytest

import bitjax as bj
from bitjax.quantizers.base import Planes, Traits

PACKAGE = Path(bj.__file__).parent
# The record is shown: a column of the summary, arguments in the doctor's advice; and compared with
# that of the run that a checkpoint is of.
SHOWN_BY = {"diagnostics/summary.py", "diagnostics/checks/ranges.py", "training/identity.py"}


def test_the_record_and_the_name_of_a_quantizer_decide_nothing():
    decides = re.compile(r"quantizer\.name(\.\w+\(|\[| [=!]=| (not )?in )|in quantizer\.name")
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        assert not decides.search(text), f"{name} decides by a quantizer's name: ask `.traits`"
        reads = [
            node.lineno
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute)
            and node.attr == "form"
            # These have one too.
            and not re.search(r"\b(task|place|score|dataset|self)$", ast.unparse(node.value))
        ]
        assert not reads or name in SHOWN_BY, f"{name}:{reads} reads `.form`: ask `.traits`"


ZERO = Traits(zero_is_code=True)
SAID = {
    "identity": (bj.identity(), ZERO),
    "uniform": (bj.uniform(4), ZERO),
    "uniform off zero": (bj.uniform(4, zero_on_grid=False), Traits()),
    "uniform from 0": (bj.uniform(4, signed=False), ZERO._replace(numbers="unsigned")),
    "lsq": (bj.lsq(4), ZERO._replace(normalized=("scale",))),
    "pact": (bj.pact(4), ZERO._replace(numbers="unsigned")),
    "bitlength": (bj.bitlength(4.0, max_bits=8.0), Traits(learns_bits=(1.0, 8.0))),
    "bitlength on zero": (
        bj.bitlength(4.0, zero_on_grid=True),
        ZERO._replace(learns_bits=(1.0, 16.0)),
    ),
    "bitlength from 0": (
        bj.bitlength(4.0, range="learned", signed=False),
        ZERO._replace(learns_bits=(1.0, 16.0), numbers="unsigned"),
    ),
    "fixed bitlength": (bj.bitlength(4.0, mode="fixed"), Traits()),
    "halfwave": (bj.halfwave(2), ZERO._replace(numbers="unsigned", rectifies=True)),
    "ternary": (bj.ternary(), ZERO._replace(coding="sign_magnitude")),
    "binary": (bj.binary(), Traits(coding="signs")),
    "stored": (bj.binary(fit="stored"), Traits(stored_scale=True, coding="signs")),
    "stored ternary": (
        bj.ternary(fit="stored"),
        ZERO._replace(stored_scale=True, coding="sign_magnitude"),
    ),
    "planes": (
        bj.bitplane(4),
        ZERO._replace(numbers="unsigned", normalized=("scale",), planes=Planes(8)),
    ),
    "the paper's planes": (
        bj.bitplane(8, mode="faithful", truncate=True, coefficients="free"),
        ZERO._replace(numbers="unsigned", planes=Planes(8, "free", "example", truncated=True)),
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_quantizers_say_what_they_are(name):
    quantizer, said = SAID[name]
    assert quantizer.traits == said


def test_freezing_holds_learned_bits_and_leaves_all_else():
    frozen, stored = bj.freeze(bj.bitlength(4.5)), bj.ternary(fit="stored")
    assert frozen.traits.learns_bits is None and frozen.name == "bitlength/fixed"
    assert bj.freeze(frozen) is frozen
    assert bj.freeze(stored) is stored, "its codes are held by what solves them"
    alone = bj.bitlength(4.5)._replace(frozen=None)
    assert bj.freeze(alone) is alone, "no optimizer moves its bits any more"
