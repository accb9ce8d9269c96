"""Seconds in which `bitjax.solve_layers` solves the 18 inner layers of ResNet-20.

Run: python -m benchmarks.solving [--images 1024]

With BITJAX_DATA in the environment the network is the published one and the images are CIFAR-10's;
else it is a network at its start that reads noise.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import bitjax as bj
from benchmarks.timing import machine, show
from bitjax.data import load
from bitjax.models import load_resnet, resnet20
from bitjax.models.pretrained import RESNET_MEAN, RESNET_STD

BATCH = 128
TARGET = 45.0


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1024)
    flags = parser.parse_args(arguments)
    wall, processors, reports = solving(flags.images)
    show(
        f"ternary kernels, {flags.images} images, the first call; target {TARGET:.0f} s",
        ("layers", "s", "processors' s"),
        [(len(reports), wall, processors)],
    )
    print(machine())


if __name__ == "__main__":
    main()
