"""Which rule decides for a site, and the errors for rules that do nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bitjax import Quantized, identity, rule, uniform
from bitjax.rules import check_rules, find, quantizer_of

Q4, Q8 = uniform(4), uniform(8)


def test_the_first_rule_that_matches_in_full_decides():
    rules = [rule("head/.*", None), rule(".*/kernel", Q4), rule(".*", Q8)]
    assert quantizer_of(rules, "head/kernel") is None
    assert quantizer_of(rules, "stem/kernel") is Q4
    assert quantizer_of(rules, "stem/input") is Q8
    assert find(rules[:2], "stem/input") is None
    assert find([rule("stem", Q4)], "stem/kernel") is None  # a part of the name is no match


def test_a_pattern_that_is_no_regular_expression_is_an_error_that_shows_it():
    with pytest.raises(
        ValueError, match=r"`pattern` must be a regular expression, got '\(stem'; missing \)"
    ):
        rule("(stem", Q4)


def test_a_quantizer_that_was_not_called_is_an_error():
    with pytest.raises(
        ValueError, match=r"a Quantizer, got .*; make one by bitjax.uniform\(bits=4\)"
    ):
        rule(".*", uniform)


def test_a_rule_that_matches_nothing_lists_every_site_once():
    with pytest.raises(ValueError) as error:
        check_rules([rule("steem/.*", Q4)], ["stem/kernel", "stem/input", "stem/kernel"])
    assert str(error.value) == (
        "rule 'steem/.*' does nothing: it matches no site in full. Sites: stem/kernel, stem/input."
    )


def test_a_rule_behind_one_that_takes_all_its_sites_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"'stem/.*' does nothing.*'stem/kernel' by '.*kernel'"):
        check_rules([rule(".*kernel", Q4), rule("stem/kernel", Q8)], ["stem/kernel"])


class WithRaw(nn.Module):
    """A layer of the user's own, in front of one of Flax's."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return Raw(name="raw")(x)


class Raw(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (x.shape[-1], 2))


def init(*rules):
    return Quantized(WithRaw(), rules).init(jax.random.key(0), jnp.ones((2, 3)))


def test_a_layer_of_the_users_own_has_sites_like_any_other():
    quant = init(rule("raw/kernel", None), rule(".*/kernel", Q4))["quant"]
    assert list(quant) == ["dense"]
    quant = init(rule(".*/kernel", Q4))["quant"]
    assert quant["raw"]["kernel"]["bits"] == 4


def test_a_rule_for_a_normalisation_is_an_error_and_a_broad_one_passes_it_by():
    with pytest.raises(ValueError, match="names the parameter 'norm/.*', which no product reads"):
        init(rule("norm/.*", Q4))
    assert list(init(rule("(?!raw).*", Q4))["quant"]) == ["dense"]
    init(rule("norm/.*", None), rule("dense/.*", Q4))  # what is float already may be said to be


def test_a_rule_that_matches_no_site_of_a_model_is_an_error_when_it_is_initialised():
    sites = "dense/kernel, dense/input, raw/kernel, raw/input"
    with pytest.raises(ValueError, match=rf"does nothing.*Sites: {sites}\."):
        init(rule("conv/kernel", Q4))


def test_identity_is_a_quantizer_and_none_is_none():
    variables = init(rule("dense/kernel", identity()), rule("dense/input", None))
    assert float(variables["quant"]["dense"]["kernel"]["bits"]) == 32.0
    assert "input" not in variables["quant"]["dense"]


def test_what_is_no_list_of_rules_is_refused():
    with pytest.raises(TypeError, match=r"give \[rule\('.\*', ...\)\], not a rule alone"):
        Quantized(nn.Dense(2), rule(".*", Q4))
    with pytest.raises(TypeError, match="made by bitjax.rule"):
        Quantized(nn.Dense(2), [(".*", Q4)])
