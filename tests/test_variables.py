"""Nodes of a model's variables by path, and what the rooms above share to name and split them."""

import pytest

from bitjax.variables import as_args, floats_of, read_site, site_name, write_site

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
    assert as_args(1) == (1,) and as_args((1, 2)) == (1, 2)
