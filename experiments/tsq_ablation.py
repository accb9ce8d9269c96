"""Measures what each part of two-step quantization's solver is worth, layer by layer.

For every layer that the config would solve, ternary weights are found in several ways from the same
patches, and judged on others: the error behind the layer's quantizer, or of its output where there
is none, relative to the energy of what is wanted. Inputs are the teacher's own, so that layers do
not depend on each other. The network is the config's start with its inputs quantized; the first
step's training is not run.

python -m experiments.tsq_ablation cifar10/resnet20_tsq_a2:a4
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.launch.config_files import load_config

WAYS: dict[str, dict[str, Any]] = {
    "TWN weights, old statistics": {"start": "twn", "scale": "old"},
    "OTWN weights, old statistics": {"start": "otwn", "scale": "old"},
    "TWN weights, statistics re-estimated": {"start": "twn", "scale": "matched"},
    "OTWN weights, statistics re-estimated": {"start": "otwn", "scale": "matched"},
    "TWN weights, scale and intercept": {"start": "twn", "scale": "best"},
    "OTWN weights, scale and intercept": {"start": "otwn", "scale": "best"},
    "+ coordinate descent, a scale for each sweep": {"joint": False},
    "+ coordinate descent, joint": {"joint": True},
    "+ ridge 0.1": {"joint": True, "ridge": 0.1},
    "+ ridge 0.3": {"joint": True, "ridge": 0.3},
    "+ ridge 0.1 and z-step": {"joint": True, "ridge": 0.1, "behind": True},
}


def _fits_of(moments, x, z, float_MxN, affine, levels) -> dict[str, Any]:
    """A fit of one layer in each way."""
    import jax
    import jax.numpy as jnp

    from bitjax.quantizers.weight_codes import MATRIX, otwn_codes, twn_codes
    from bitjax.solvers.code_descent import Fit
    from bitjax.two_step.fits import GroupFit, SolveOptions, fit_behind, fit_group

    grid, starts = np.array([-1.0, 0.0, 1.0]), {"twn": twn_codes, "otwn": otwn_codes}
    starts = {n: [np.asarray(a, float) for a in f(float_MxN, MATRIX)] for n, f in starts.items()}
    found = {}
    for name, way in WAYS.items():
        codes, scale = starts[way.get("start", "otwn")]
        if "start" in way:
            scale, intercept = scale.ravel(), np.zeros(len(codes))
            square = np.maximum(np.einsum("mn,nk,mk->m", codes, moments.gram_NxN, codes), 1e-12)
            if way["scale"] == "matched":
                scale = np.sqrt(moments.energy_M / square)
            if way["scale"] == "best":
                scale = np.maximum(np.sum(moments.cross_MxN * codes, axis=1), 0) / square
            if way["scale"] != "old":
                intercept = moments.target_mean_M - scale * (codes @ moments.mean_N)
            found[name] = Fit(*map(jnp.asarray, (codes, scale, intercept)))
            continue
        settings = SolveOptions(joint=way["joint"], ridge=way.get("ridge", 0.0))
        start = Fit(*map(jnp.asarray, (codes, scale.ravel(), np.zeros(len(codes)))))
        solved: GroupFit = fit_group(moments, float_MxN, start, grid, settings, jax.random.key(0))
        if way.get("behind") and levels is not None:
            solved = fit_behind(solved, x, z, affine, levels, float_MxN, grid, settings)
        found[name] = solved.fit
    return found


def error_of(fit, x, z, affine, levels) -> float:
    """Held-out error behind the quantizer, or of the output, over what is wanted."""
    from bitjax.solvers.targets import output_of

    v = np.asarray(x) @ (np.asarray(fit.scale_M)[:, None] * np.asarray(fit.codes_MxN)).T
    v = v + np.asarray(fit.intercept_M)
    if levels is None:
        return float(np.sum((z - v) ** 2) / np.sum((z - np.mean(z, axis=0)) ** 2))
    found, wanted = (
        np.asarray(
            output_of(
                a * affine.gain_M + affine.offset_M, levels.step, levels.threshold, levels.count
            )
        )
        for a in (v, z)
    )
    return float(np.sum((found - wanted) ** 2) / np.sum(wanted**2))


def rows(
    work, args: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, list[tuple[str, float]]]:
    """Errors of every way, a (target, error) per layer."""
    import jax
    import jax.numpy as jnp

    import bitjax as bj
    from bitjax.frameworks.targets import float_kernels, levels_of, plan_layers
    from bitjax.two_step.data import sampler
    from bitjax.two_step.layer import layer_of
    from bitjax.two_step.moments import merge, moments_of, sums_of

    stages = {stage.name: stage for stage in work.method.stages}
    model = bj.Quantized(work.model, stages["transform"].rules)
    variables = bj.attach(model, work.start, work.calibration_batch())
    if stages["codes"].prepare is not None:
        (variables,) = stages["codes"].prepare(work.context(0, variables, say), variables, 0)
    batches = list(work.batches(args.batches + args.held_out, False))
    plans = plan_layers(model, variables, (batches[0],))
    teacher = model.with_rules(float_kernels(model.rules))
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in WAYS}
    for index, plan in enumerate(plans):
        layer = layer_of(teacher, variables, (batches[0],), {}, plan.layer)
        take = sampler(teacher, teacher, [plan.layer], {}, per_example=args.positions)
        taken = [
            take(variables, variables, bj.Inputs((b,)), None, jax.random.key(i))
            for i, b in enumerate(batches)
        ]
        seen = [(one.x_GxTxN, one.z_GxTxM[0]) for one in taken]
        sums = None
        for x, z in seen[: args.batches]:
            sums = merge(sums, sums_of(x, z))
        assert sums is not None, "there is a batch to solve from"
        (x, z), (held_x, held_z) = (
            [jnp.concatenate([pair[i][0] for pair in part]) for i in (0, 1)]
            for part in (seen[: args.batches], seen[args.batches :])
        )
        float_MxN, affine = layer.matrix(variables)[0], layer.affine
        levels = levels_of(model.rules, variables, plan.consumer.site or "")
        levels = levels if plan.target == "codes" else None
        fits = _fits_of(moments_of(sums, 0, intercept=True), x, z, float_MxN, affine, levels)
        for name, fit in fits.items():
            error = error_of(fit, np.asarray(held_x), np.asarray(held_z), affine, levels)
            found[name].append((plan.target, error))
        say(f"{index + 1}/{len(plans)} {plan.layer} ({plan.target})")
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "python -m experiments.tsq_ablation")
    parser.add_config()
    parser.add_count("batches", "batches to solve from", default=16)
    parser.add_count("held_out", "batches to judge by", default=8)
    parser.add_count("positions", "patches of an example", default=16)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Solves the config's layers in every way and prints the table."""
    args = parse(argv)
    from bitjax.launch.build import build_work
    from bitjax.runs.provenance import provenance

    config = load_config(args.config, args.overrides)
    if config.method.name != "tsq":
        raise ValueError(f"config.method.name must be 'tsq' for this, got {config.method.name!r}.")
    work = build_work(config)
    found = rows(work, args, lambda line: print(line, flush=True))
    kinds = sorted({kind for errors in found.values() for kind, _ in errors})
    targets = [target for target, _ in found[next(iter(WAYS))]]
    print("| way | " + " | ".join(f"{k}, {targets.count(k)} layers" for k in kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for name, errors in found.items():
        cells = [np.mean([e for a, e in errors if a == kind]) for kind in kinds]
        print(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    print(provenance())


if __name__ == "__main__":
    with front_door(compiles=True):
        main()
