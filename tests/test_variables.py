"""Nodes of a model's variables by path, and what the rooms above share to name and split them."""

import pytest

from bitjax.variables import (
    Inputs,
    as_batch,
    as_call,
    floats_of,
    read_site,
    site_name,
    write_site,
)

TREE = {"conv": {"kernel": 3}}


def test_a_node_is_read_and_replaced_by_its_path():
    assert read_site(TREE, "conv/kernel") == 3
    assert read_site(TREE, "") is TREE
    assert write_site(TREE, "conv/kernel", 4) == {"conv": {"kernel": 4}}
    assert TREE == {"conv": {"kernel": 3}}


def test_a_node_that_is_missing_is_an_error_or_what_was_asked_for_instead():
    with pytest.raises(KeyError):
        read_site(TREE, "head/kernel")
    assert read_site(TREE, "head/kernel", {}) == {}
    assert read_site(TREE, "conv/kernel/bits", None) is None


def test_sites_floats_and_arguments_have_one_form_each():
    assert (site_name("conv", "input"), site_name("", "input")) == ("conv/input", "input")
    assert floats_of({"params": 1, "quant": 2, "quant_stats": 3}) == {"params": 1}


@pytest.mark.parametrize(
    ("batch", "call"),
    [
        (1, ((1,), {})),
        ((1, 2), ((1, 2), {})),
        (((1, 2),), (((1, 2),), {})),
        (Inputs((1,), {"mask": 2}), ((1,), {"mask": 2})),
        (Inputs(kwargs={"x": 1}), ((), {"x": 1})),
    ],
)
def test_a_batch_is_a_call_and_a_call_is_a_batch(batch, call):
    assert as_call(batch) == call
    assert as_batch(*as_call(batch)) == batch


def test_a_batchs_own_keyword_arguments_come_before_those_of_all_batches():
    assert as_call(1, {"mask": 3}) == ((1,), {"mask": 3})
    assert as_call(Inputs((1,), {"mask": 2}), {"mask": 3, "other": 4}).kwargs == {
        "mask": 2,
        "other": 4,
    }
