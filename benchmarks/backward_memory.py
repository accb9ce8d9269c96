"""Memory for the backward pass: per quantizer, and of the whole step of ResNet-20.

Run: python -m benchmarks.backward_memory [--batch 128] [--no-step]
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

import bitjax as bj
from benchmarks.step_time import CONTROL, prepare, stages, synthetic_batch
from benchmarks.timing import machine, show
from bitjax.methods.base import Stage
from bitjax.models import resnet20
from bitjax.quantizers.ste import round_ste

SHAPE = (128, 32, 32, 16)  # an input of ResNet-20's first stage
NAIVE = "naive blend"
TARGET = 1.05


def quantizers() -> dict[str, bj.Quantizer]:
    """The quantizers by name, each in its usual form for an input."""
    found = {
        "uniform": bj.uniform(bits=4),
        "lsq": bj.lsq(bits=4),
        "pact": bj.pact(bits=4),
    }
    for mode in ("blend", "sharpen", "ste", "sample"):
        found[f"bitlength/{mode}"] = bj.bitlength(init=4.5, mode=mode)
    found["bitlength/blend learned"] = bj.bitlength(init=4.5, range="learned", signed=False)
    found["bitplane"] = bj.bitplane(bits=4)
    found["bitplane/free"] = bj.bitplane(bits=4, coefficients="free")
    found["bitplane/faithful"] = bj.bitplane(bits=4, mode="faithful")
    return found


def naive_blend(x: jax.Array, lo: jax.Array, width: jax.Array, bits: jax.Array) -> jax.Array:
    """BitPruning's blend as one writes it first: round straight through, autodiff for the rest."""

    def on_grid(n):
        scale = width / (2.0**n - 1.0)
        return lo + scale * round_ste((jnp.clip(x, lo, lo + width) - lo) / scale)

    floor = jnp.floor(jax.lax.stop_gradient(bits))
    mix = bits - floor
    return (1.0 - mix) * on_grid(floor) + mix * on_grid(floor + 1.0)


def kept_bytes(function: Callable[..., jax.Array], *args: object) -> int:
    """Bytes that the closure of `jax.vjp(function, *args)` holds; nothing is computed."""

    def kept(*args):
        leaves = jax.tree.leaves(jax.vjp(function, *args)[1])
        return list({id(leaf): leaf for leaf in leaves}.values())  # each array once

    residuals = jax.eval_shape(kept, *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)


def relative_residuals(shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    """Bytes kept over bytes of the tensor, by quantizer; the naive blend last."""
    x = jnp.zeros(shape, dtype)
    found = {}
    for name, quantizer in quantizers().items():
        params, stats = quantizer.init(x, bj.Axes())

        def function(params, x, stats=stats, quantizer=quantizer):
            return quantizer.apply(params, stats, x, train=True, key=jax.random.key(0))

        found[name] = kept_bytes(function, params, x) / x.nbytes
    scalars = jnp.float32(-1.0), jnp.float32(2.0), jnp.float32(4.5)
    found[NAIVE] = kept_bytes(naive_blend, x, *scalars) / x.nbytes
    return found


def step_memory(net: nn.Module, chosen: Mapping[str, Stage], batch_size: int) -> dict[str, int]:
    """Bytes of temporaries that the compiled step of every stage needs."""
    batch = synthetic_batch(batch_size)
    found = {}
    for name, stage in chosen.items():
        step, state = prepare(net, stage, batch)
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        found[name] = compiled.memory_analysis().temp_size_in_bytes
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-step", action="store_true", help="leave out the compiled steps")
    flags = parser.parse_args(arguments)
    kept = {dtype: relative_residuals(SHAPE, dtype) for dtype in ("float32", "bfloat16")}
    show(
        f"Bytes kept for the backward pass over the tensor's, {list(SHAPE)}; counted, not sampled",
        ("quantizer", *kept),
        [(name, *(f"{kept[d][name]:.3f}" for d in kept)) for name in kept["float32"]],
    )
    if not flags.no_step:
        found = step_memory(resnet20(), stages(), flags.batch)
        base = found[CONTROL[0]]
        show(
            f"Temporaries of ResNet-20's compiled step, float32, batch {flags.batch}",
            ("variant", "ratio to float", "MiB"),
            [(name, f"{size / base:.3f}", f"{size / 2**20:.0f}") for name, size in found.items()],
        )
    print(machine())


if __name__ == "__main__":
    main()
