"""Seconds in which `bitjax.solve_layers` solves the 18 inner layers of ResNet-20.

Run: python -m benchmarks.solving [--images 1024] [--rounds 5]

With BITJAX_DATA in the environment the network is the published one and the images are CIFAR-10's;
else it is a network at its start that reads noise. `--rounds` compares what the solvers take for
one layer, from its moments, with GPTQ written in NumPy; the target is at most 3 times as long.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import bitjax as bj
from benchmarks.timing import interleave, machine, median, ratios, show
from bitjax.data import load
from bitjax.models import load_resnet, resnet20
from bitjax.models.pretrained import RESNET_MEAN, RESNET_STD
from bitjax.solvers import adaround_codes, gptq_codes
from bitjax.two_step.fits import SolveOptions, fit_group
from bitjax.two_step.moments import merge, moments_of, sums_of
from bitjax.two_step.starts import Problem, grid_of, rounded, start_of

BATCH = 128
TARGET = 45.0
BITS = 4
LAYERS = ((144, 16), (288, 32), (576, 64))  # inputs and filters of most layers


def network(images: int):
    """`(variables, batches)` of a float ResNet-20."""
    if root := os.environ.get("BITJAX_DATA"):
        variables = load_resnet(Path(root) / "pretrained" / "cifar10_resnet20.npz")
        taken = load("cifar10").images[:images] / np.float32(255.0)
        x = (taken - np.float32(RESNET_MEAN)) / np.float32(RESNET_STD)
    else:
        x = np.random.default_rng(0).standard_normal((images, 32, 32, 3), np.float32)
        variables = jax.jit(resnet20().init)(jax.random.key(0), x[:1])
    return variables, [x[i : i + BATCH] for i in range(0, images, BATCH)]


def solving(images: int = 1024) -> tuple[float, float, list]:
    """Seconds by the wall and of the processors, compilation included, and the layers' reports."""
    float_variables, batches = network(images)
    model = bj.Quantized(resnet20(), [bj.rule("stage.*/kernel", bj.ternary(fit="stored"))])
    variables = bj.attach(model, float_variables, batches[0])
    reports: list = []
    began = time.perf_counter(), time.process_time()
    jax.block_until_ready(bj.solve_layers(model, variables, batches, log=reports.append))
    return time.perf_counter() - began[0], time.process_time() - began[1], reports


def gptq(gram, filters, scale, damping=0.01):
    """The codes of GPTQ with act order, one input after the other."""
    low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
    order = np.argsort(-np.diagonal(gram), kind="stable")
    damped = gram[np.ix_(order, order)] + damping * np.diagonal(gram).mean() * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    w, codes = filters[:, order].copy(), np.empty_like(filters)
    for j in range(len(gram)):
        codes[:, j] = np.clip(np.rint(w[:, j] / scale), low, high)
        w[:, j:] -= np.outer((w[:, j] - scale * codes[:, j]) / upper[j, j], upper[j, j:])
    return codes[:, np.argsort(order)]


def per_layer(rounds: int, layers=LAYERS) -> list[tuple]:
    """Rows of median seconds for each layer's shape: NumPy's GPTQ, and our solvers over it."""
    quantizer = bj.low_bit(bits=BITS, fit="stored", narrow=False)
    rows = []
    for inputs, filters in layers:
        rng = np.random.default_rng(0)
        x = np.maximum(rng.standard_normal((4 * inputs, inputs)) @ rng.standard_normal(
            (inputs, inputs)) / np.sqrt(inputs), 0).astype(np.float32)  # fmt: skip
        w = rng.standard_normal((filters, inputs)).astype(np.float64)
        sums, held = (
            merge(None, sums_of(part[None], (part @ w.T).astype(np.float32)[None]))
            for part in (x, x[::5])
        )
        gram = sums.xx_GxNxN[0] / sums.count
        grid = grid_of(quantizer, BITS)
        scale = rounded(quantizer, w, grid).scale_M

        def solved(w=w, grid=grid, sums=sums, held=held):
            problem = Problem(quantizer, w, grid, SolveOptions(ridge=0.3))
            start = start_of(problem, sums, held, 0, False)
            moments = moments_of(sums, 0, intercept=False)
            fit = fit_group(moments, w, start, grid, problem.settings, jax.random.key(0))
            jax.block_until_ready(fit.fit.codes_MxN)

        each = {
            "NumPy": lambda gram=gram, w=w, scale=scale: gptq(gram, w, scale),
            "GPTQ": lambda gram=gram, w=w, scale=scale, grid=grid: gptq_codes(gram, w, grid, scale),
            "AdaRound": lambda gram=gram, w=w, scale=scale, grid=grid: adaround_codes(
                gram, w, grid, scale
            ),
            "solved": solved,
        }
        seconds = interleave(each, rounds)
        over = ratios(seconds, "NumPy")
        shown = [f"{over[name].median:.2f}" for name in ("GPTQ", "AdaRound", "solved")]
        rows.append((f"{inputs} x {filters}", median(seconds["NumPy"]), *shown))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=0)
    flags = parser.parse_args(arguments)
    if flags.rounds:
        columns = ("layer", "NumPy's GPTQ, s", "GPTQ", "AdaRound", "solved")
        show(f"one layer at {BITS} bits, times over NumPy's", columns, per_layer(flags.rounds))
        print(machine())
        return
    wall, processors, reports = solving(flags.images)
    show(
        f"ternary kernels, {flags.images} images, the first call; target {TARGET:.0f} s",
        ("layers", "s", "processors' s"),
        [(len(reports), wall, processors)],
    )
    print(machine())


if __name__ == "__main__":
    main()
