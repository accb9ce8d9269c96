"""The judge of bad inputs sees every way in which a call can end wrongly."""

import sys
import time

import pytest

import bitjax as bj
from bitjax.cli.main import main
from tests.bad_inputs import judge
from tests.bad_inputs.judge import Case, fault_of


def raises(error):
    def call():
        raise error

    return call


def exits(code):
    return lambda: sys.exit(code)


WRONG = {
    "is accepted": Case("x", lambda: None),
    "is refused: ValueError: `bits` must": Case("x", lambda: bj.uniform(bits=17), good=True),
    "traceback: TypeError: unsupported": Case("x", lambda: 1 + "a"),
    "traceback: ValueError: of mine": Case("x", raises(ValueError("of mine"))),
    "traceback: KeyError": Case("x", lambda: bj.kernel_bytes.__globals__["no such thing"]),
    "is refused without naming depth": Case("x", lambda: bj.uniform(bits=17), ("depth",)),
    "ends with 3 and prints": Case("x", exits(3)),
    "is refused in 2 lines": Case("x", exits("error: a\nb")),
    "is refused in a library's words": Case("x", exits("error: 'NoneType' is odd")),
}


@pytest.mark.parametrize("fault", WRONG)
def test_each_kind_of_fault_is_told(fault):
    assert fault_of(WRONG[fault]).startswith(fault)


def test_a_call_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.05)
    assert fault_of(Case("x", lambda: time.sleep(5))).startswith("hangs")


def test_a_call_that_takes_all_memory_is_stopped():
    assert fault_of(Case("x", lambda: bytearray(1 << 40))).startswith("traceback: MemoryError")


def test_refusals_are_right():
    assert fault_of(Case("x", lambda: bj.uniform(bits=17), ("bits",))) is None
    assert fault_of(Case("x", lambda: bj.uniform(bits=3), good=True)) is None
    assert fault_of(Case("x", lambda: main(["trian"]), ("trian",))) is None
    assert fault_of(Case("x", lambda: None, may_pass=True)) is None
