"""The bottleneck's costs as ratios: counting a batch, solving sites, quantizing with planes.

Run: python -m benchmarks.bottleneck [--rounds 15] [--batch 128]
"""

import argparse
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from benchmarks.timing import interleave, machine, median, ratios, show
from bitjax.bottleneck.counts import count
from bitjax.frameworks.probe import probe
from bitjax.models import resnet20
from bitjax.quantizers import Axes
from bitjax.solvers.plane_selection import select_planes

SITES = "stage.*/input"
SAMPLED = 8
COUNTED = f"counting one in {SAMPLED}"
COUNTED_TARGET = 1.2


def calibration(batch: int, rounds: int):
    """A plain forward pass, and one that counts every element or every 8th of the inner sites."""
    net = resnet20()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, 32, 32, 3), np.float32))
    variables = jax.jit(net.init)(jax.random.key(0), x[:2])

    def counting(stride):
        def on_layer(seen):
            inner = seen.product.layer.startswith("stage")
            return count(seen.raw("input"), stride=stride) if inner else None

        return jax.jit(lambda v, x: [c for _, c in probe(net, v, (x,), {}, on_layer).records])

    functions = {
        "forward": jax.jit(lambda v, x: net.apply(v, x)),
        "forward again": jax.jit(lambda v, x: net.apply(v, x)),
        "counting every element": counting(1),
        COUNTED: counting(SAMPLED),
    }
    calls = {n: lambda f=f: jax.block_until_ready(f(variables, x)) for n, f in functions.items()}
    return interleave(calls, rounds, warmup=2)


def inference(rounds: int):
    """A uniform fake quantizer of 4 bits and planes of as many, on one activation."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), (128, 32, 32, 16)))
    quantizers = {
        "uniform": bj.uniform(bits=4, signed=False),
        "uniform again": bj.uniform(bits=4, signed=False),
        "planes, power of two": bj.bitplane(bits=4),
        "planes, real coefficients": bj.bitplane(bits=4, coefficients="free"),
    }
    calls = {}
    for name, q in quantizers.items():
        params, stats = q.init(x, Axes())
        run = jax.jit(lambda p, s, x, q=q: q.apply(p, s, x))
        calls[name] = lambda r=run, p=params, s=stats: jax.block_until_ready(r(p, s, x))
    return interleave(calls, rounds, warmup=3)


def solving(sites: int = 50) -> float:
    """Seconds for the best planes of every rate at each of 50 sites, the second time."""
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(sites, 4000))
    planes = ((codes[..., None] >> np.arange(8)) & 1).astype(float)
    gram = np.einsum("sni,snj->sij", planes, planes) / 4000
    cross, energy = np.einsum("sni,sn->si", planes, codes) / 4000, np.mean(codes**2.0, axis=1)
    select_planes(gram, cross, energy)
    began = time.perf_counter()
    select_planes(gram, cross, energy)
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args(arguments)
    for title, seconds in (
        (
            f"calibration, ResNet-20, batch {flags.batch}, over a forward pass; targets: 1.6 with "
            f"every element, {COUNTED_TARGET} with one in {SAMPLED}",
            calibration(flags.batch, flags.rounds),
        ),
        (
            "inference, 2 M elements, over a uniform quantizer; targets: 1.05, with real "
            "coefficients 1.5",
            inference(10 * flags.rounds),
        ),
    ):
        found = ratios(seconds, next(iter(seconds)))
        rows = [(name, ratio, 1e3 * median(seconds[name])) for name, ratio in found.items()]
        show(title, ("what", "ratio", "ms"), rows)
    print(f"solving 50 sites for every rate: {solving():.3f} s; target: 0.1 s")
    print(machine())


if __name__ == "__main__":
    main()
