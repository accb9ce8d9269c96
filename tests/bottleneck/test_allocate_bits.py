"""Bits from measured effects: beside every assignment there is, and what is said of them."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from tests.bottleneck.test_any_task import BATCH, SEEN, VARIABLES, Decoder

KEY = jax.random.key(3)
X = jax.random.normal(KEY, (4, 32, 6)) * jnp.array([3.0, 1, 1, 1, 0.3, 0.1])
CANDIDATES = (2, 3, 4)
SITES = ("first/kernel", "last/kernel", "last/input")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="last")(nn.relu(nn.Dense(16, name="first")(x)))


FLOATS = jax.tree.map(lambda w: 2 * w, Net().init(jax.random.key(1), X[0]))
MODEL = bj.Quantized(Net(), [bj.rule("|".join(SITES), bj.uniform(bits=4, range="mse"))])
START = bj.attach(MODEL, FLOATS, X[0])
COSTS = bj.site_costs(Net(), X[0])
LIMIT = bj.budget("bits", 3.0, "|".join(SITES))


def allocated(budgets=(LIMIT,), batches=X, **settings):
    return bj.allocate_bits(MODEL, START, list(batches), budgets, candidates=CANDIDATES, **settings)


@pytest.fixture(scope="module")
def found():
    return allocated()


quantized = jax.jit(MODEL.apply)


def kl(logits, others):
    """KL of every prediction, as its definition says."""
    p, q = (np.asarray(jax.nn.softmax(z), np.float64) for z in (logits, others))
    return np.sum(p * np.log(p / q), axis=-1)


def divergence(variables, batches):
    x = batches.reshape(-1, X.shape[-1])
    return np.mean(kl(Net().apply(FLOATS, x), quantized(variables, x)))


def every_assignment(batches):
    """`{bits: divergence}` of all assignments within the budget, each put together by hand."""
    at = {
        k: bj.calibrate(MODEL, bj.with_bits(START, dict.fromkeys(SITES, k)), list(X))
        for k in CANDIDATES
    }
    distances = {}
    for bits in itertools.product(CANDIDATES, repeat=3):
        if sum(bits) <= 9:
            first, last, x = bits
            mixed = {**START}
            for name in ("quant", "quant_stats"):
                mixed[name] = {
                    "first": {"kernel": at[first][name]["first"]["kernel"]},
                    "last": {
                        "kernel": at[last][name]["last"]["kernel"],
                        "input": at[x][name]["last"]["input"],
                    },
                }
            distances[bits] = divergence(mixed, batches)
    return distances


def test_the_bits_are_those_of_the_least_divergence_of_all_assignments(found):
    distances = every_assignment(X[2:])
    best = min(distances, key=distances.__getitem__)
    assert tuple(found.bits[site] for site in SITES) == best
    assert len(set(best)) > 1, "equal bits would be found by no search"
    assert found.distance == pytest.approx(distances[best], rel=1e-4)
    assert found.uniform == pytest.approx(distances[3, 3, 3], rel=1e-4)
    assert found.joint in [pytest.approx(d, rel=1e-4) for d in distances.values()]
    assert found.chosen == "measured"


def test_the_variables_have_these_bits_and_this_divergence(found):
    bits = {site: int(n) for site, n in bj.bits_of(found.variables).items()}
    assert bits == found.bits
    assert divergence(found.variables, X[2:]) == pytest.approx(found.distance, rel=1e-4)


def test_a_prediction_is_the_sum_of_single_effects():
    # With all candidates within the budget, the least sum is where every site has the most bits.
    found = allocated([bj.budget("bits", 32.0)], rounds=0, trials=0)
    assert set(found.bits.values()) == {4}
    top = bj.calibrate(MODEL, bj.with_bits(START, dict.fromkeys(SITES, 4)), list(X))
    assert found.predicted == pytest.approx(divergence(top, X[:2]), rel=1e-4)
    assert found.joint == pytest.approx(divergence(top, X[2:]), rel=1e-4)
    assert found.chosen == "uniform" and found.distance == found.uniform


def test_several_budgets_hold_together_and_all_bits_run_in_one_program():
    at_3 = {site: np.float64(3) for site in SITES}
    budgets = [
        bj.budget("bops", float(bj.bops(at_3, COSTS, ["last/kernel"])), "last/kernel"),
        bj.budget("bytes", float(bj.kernel_bytes(at_3, COSTS))),
    ]
    traced = []

    def squared(one, other):
        traced.append(other)
        return jnp.mean((one - other) ** 2, axis=-1)

    found = allocated(budgets, distance=squared, trials=5)
    assert len(traced) == 1 and sum(found.evaluations) >= 20
    x = X[2:].reshape(-1, 6)
    error = Net().apply(FLOATS, x) - quantized(found.variables, x)
    assert found.distance == pytest.approx(float(jnp.mean(error**2)), rel=1e-4)
    bits = {site: np.float64(n) for site, n in found.bits.items()}
    assert bj.bops(bits, COSTS, ["last/kernel"]) <= budgets[0].limit
    assert bj.kernel_bytes(bits, COSTS) <= budgets[1].limit


def test_a_decoders_kernels_are_judged_by_the_tokens_that_count():
    model = bj.Quantized(Decoder(), [bj.rule("(up|down|head)/kernel", bj.uniform(bits=4))])
    start = bj.attach(model, VARIABLES, *BATCH.args, **BATCH.kwargs)
    limit = [bj.budget("bits", 3.0, "(up|down|head)/kernel")]
    settings = {"candidates": (2, 3, 4), "trials": 2, "rounds": 1}
    seen = bj.allocate_bits(model, start, [BATCH] * 2, limit, weights=[SEEN] * 2, **settings)
    logits, ours = (
        net.apply(variables, *BATCH.args, **BATCH.kwargs)
        for net, variables in ((Decoder(), VARIABLES), (model, seen.variables))
    )
    scored = np.asarray(SEEN)
    assert seen.distance == pytest.approx(
        np.sum(kl(logits, ours) * scored) / scored.sum(), rel=1e-4
    )


LSQ = bj.Quantized(Net(), [bj.rule("last/kernel", bj.lsq(bits=4, signed=True))])
REFUSED = {
    "one batch": ({"batches": X[:1]}, "`batches` must be 2 or more"),
    "no site": ({"sites": "nowhere"}, "matches no quantized site in full. Sites: first/kernel"),
    "no room": (
        {"budgets": [LIMIT._replace(limit=1.5)]},
        "cost 2. Raise the budget or give fewer bits",
    ),
    "no costs": ({"costs": {}}, "`costs` must have those of every site, there are none of 'first"),
    "a number as distance": ({"distance": lambda one, other: math.nan}, "network is nan over"),
    "weights of another shape": ({"weights": [jnp.ones(3)] * 4}, "one number a prediction"),
    "weights of zeros": ({"weights": [jnp.zeros(32)] * 4}, "must count a prediction in both parts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_allocated_is_one_line(case):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        allocated(**settings)


def test_a_scale_that_was_fitted_at_its_own_bits_is_refused():
    start = bj.attach(LSQ, FLOATS, X[0])
    with pytest.raises(ValueError, match="'last/kernel' keeps a scale that was fitted at its own"):
        bj.allocate_bits(LSQ, start, list(X), [LIMIT])
