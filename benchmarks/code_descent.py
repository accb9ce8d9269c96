"""Fitting codes: seconds for VGG-small, a sweep's rate over the matrix product's, NumPy's loop.

Run: python -m benchmarks.code_descent [--rounds 7] [--patches 20000] [--layers 5]
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleave, machine, median, paired_ratio, show
from bitjax.solvers import fit_codes
from bitjax.solvers.code_rules import dot, problem_of
from bitjax.solvers.code_sweep import descend

LAYERS = ((1152, 128), (1152, 256), (2304, 256), (2304, 512), (4608, 512))
TERNARY = np.array([-1.0, 0.0, 1.0], np.float32)
CHUNK = 1000


@partial(jax.jit, static_argnames=("inputs", "filters"))
def layer(key, inputs: int, filters: int):
    """Float filters, and a matrix of few ranks by which inputs are correlated."""
    mix, w = jax.random.split(key)
    return (
        jax.random.normal(w, (filters, inputs)),
        jax.random.normal(mix, (inputs // 8, inputs)) / np.sqrt(inputs / 8),
    )


@jax.jit
def patches(key, mix):
    """Codes 0 to 3 of 2-bit activations, about 60 % of them 0."""
    own, common = jax.random.split(key)
    v = jax.random.normal(own, (CHUNK, mix.shape[1]))
    v += jax.random.normal(common, (CHUNK, mix.shape[0])) @ mix
    return jnp.clip(jnp.round(v), 0, 3)


@partial(jax.jit, donate_argnums=0)
def accumulate(sums, x, w):
    """Sums of x x^T, z x^T, z^2, x and z over one chunk of patches; z = W x."""
    z = dot(x, w.T)
    new = dot(x.T, x), dot(z.T, x), (z**2).sum(0), x.sum(0), z.sum(0)
    return jax.tree.map(jnp.add, sums, new)


def statistics(key, inputs: int, filters: int, count: int):
    """`(gram, cross, energy)` centred, means, float filters, and seconds but for making patches."""
    w, mix = layer(key, inputs, filters)
    shapes = (inputs, inputs), (filters, inputs), (filters,), (inputs,), (filters,)
    sums = tuple(jnp.zeros(shape) for shape in shapes)
    seconds = 0.0
    for draw in jax.random.split(key, count // CHUNK):
        x = jax.block_until_ready(patches(draw, mix))
        began = time.perf_counter()
        sums = jax.block_until_ready(accumulate(sums, x, w))
        seconds += time.perf_counter() - began
    gram, cross, energy, x, z = (a / (count // CHUNK * CHUNK) for a in sums)
    given = gram - jnp.outer(x, x), cross - jnp.outer(z, x), energy - z**2
    return given, {"mean_N": x, "target_mean_M": z}, w, seconds


def ternary_start(w):
    """The filters' signs above 0.7 of their mean magnitude (TWN)."""
    return jnp.sign(w) * (jnp.abs(w) > 0.7 * jnp.abs(w).mean(1, keepdims=True))


def solving(layers, count: int):
    """A row per layer: seconds for the statistics and the fit with compilation, and what came."""
    for i, (inputs, filters) in enumerate(layers):
        given, means, w, gram_seconds = statistics(jax.random.key(i), inputs, filters, count)
        began = time.perf_counter()
        solution = fit_codes(*given, TERNARY, ternary_start(w), **means)
        jax.block_until_ready(solution.value)
        seconds = time.perf_counter() - began
        error = float((solution.objective / given[2]).mean())
        sweeps = solution.stats["sweeps"]
        yield f"({inputs}, {filters})", gram_seconds, seconds, sweeps, error


def sweeping(inputs: int, filters: int, rounds: int, joint: bool, count: int = 4000):
    """Seconds of a sweep (8 of them less 2, over 6) and of A W, interleaved."""
    given, _, w, _ = statistics(jax.random.key(0), inputs, filters, count)
    gram, cross, _ = given
    problem = problem_of(gram, cross, TERNARY, 0, jnp.zeros_like(cross))
    start = ternary_start(w).T
    product = jax.jit(dot)
    run = partial(descend, problem, start, joint=joint, block=64, precision="highest")
    calls = {
        "2 sweeps": lambda: jax.block_until_ready(run(max_sweeps=2)),
        "8 sweeps": lambda: jax.block_until_ready(run(max_sweeps=8)),
        "product": lambda: jax.block_until_ready(product(gram, start)),
    }
    if int(run(max_sweeps=8).sweeps) < 8:
        raise RuntimeError("Descent ended before 8 sweeps: there is nothing to subtract.")
    seconds = interleave(calls, rounds, warmup=1)
    both = zip(seconds["8 sweeps"], seconds["2 sweeps"], strict=True)
    return [(long - short) / 6 for long, short in both], seconds["product"]


def numpy_sweep(gram, cross, w, filters: int) -> float:
    """Seconds of a joint sweep of the first filters: a loop over inputs, filters at once."""
    gram, q, codes = np.asarray(gram), np.asarray(cross)[:filters].T, np.array(w)[:filters].T
    began = time.perf_counter()
    s, c = (q * codes).sum(0), (codes * (gram @ codes)).sum(0)
    for j in range(len(codes)):
        g = gram[j] @ codes
        d = TERNARY[:, None] - codes[j]
        s_new, c_new = s + d * q[j], c + 2 * d * g + d * d * gram[j, j]
        k = np.where(s_new > 0, s_new**2 / c_new, 0).argmax(0)
        every = np.arange(filters)
        codes[j], s, c = TERNARY[k], s_new[k, every], c_new[k, every]
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=len(LAYERS))
    flags = parser.parse_args(arguments)
    layers = LAYERS[: flags.layers]

    rows = list(solving(layers, flags.patches))
    total = sum(row[1] + row[2] for row in rows)
    show(
        f"stage A, {flags.patches} patches, joint, to the end or 30 sweeps; target: 60 s in all",
        ("layer", "statistics s", "fit s, compiled", "sweeps", "relative error"),
        rows,
    )
    print(f"in all: {total:.1f} s")

    rows = []
    for inputs, filters in layers:
        for joint in (True, False):
            sweep, product = sweeping(inputs, filters, flags.rounds, joint)
            rate = paired_ratio(product, sweep)
            mode = "joint" if joint else "alternate"
            rows.append((f"({inputs}, {filters})", mode, rate, 1e3 * median(sweep)))
    show(
        "a sweep's multiply-adds per second over those of A W; target: 0.4",
        ("layer", "scale", "rate", "ms"),
        rows,
    )

    inputs, filters = LAYERS[0]
    given, _, w, _ = statistics(jax.random.key(0), inputs, filters, 4000)
    few = 8
    one_by_one = sum(
        numpy_sweep(given[0], given[1][i:], ternary_start(w)[i:], 1) for i in range(few)
    )
    one_by_one *= filters / few
    at_once = numpy_sweep(given[0], given[1], ternary_start(w), filters)
    ours = median(sweeping(inputs, filters, flags.rounds, True)[0])
    show(
        f"a joint sweep of {LAYERS[0]}; target: 50 times NumPy's loop over inputs and filters",
        ("what", "s", "over ours"),
        [
            (f"NumPy, filter by filter ({few} of them, scaled)", one_by_one, one_by_one / ours),
            ("NumPy, all filters at once", at_once, at_once / ours),
            ("ours", ours, 1.0),
        ],
    )
    print(machine())


if __name__ == "__main__":
    main()
