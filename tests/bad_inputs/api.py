"""Bad arguments of every public callable: a right call each, with one argument made wrong."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

import bitjax as bj
from bitjax import data, methods, solvers
from bitjax.costs import accelerators
from bitjax.data import held_out
from bitjax.methods import optimizers, recipe
from bitjax.report import statistics
from bitjax.runs.checkpoint import Checkpoints
from bitjax.two_step.fits import SolveOptions
from tests.bad_inputs.judge import Case
from tests.bad_inputs.values import shown, wrong_values

# What is right all the same, by callable and argument: the shown values, or all.
FINE: dict[tuple[str, str], tuple[str, ...] | None] = {
    # A mapping for a penalty that is not added (gamma is 0); a stage checks it with the sites.
    ("bitpruning", "criterion"): ("{}",),
    ("bitpruning", "start_bits"): ("{'no/such': 1.0}",),  # as is this
    # Decibels above the reference, and codes that begin below 0.
    ("bottleneck", "psnr_loss"): ("-1.0",),
    ("allocate", "psnr_loss"): ("-1.0",),
    ("solvers.fit_output_codes", "threshold"): ("-1.0",),
    ("solvers.lasso_path", "mean"): ("-1.0",),
    ("data.decode", "tokens"): ("array([], dtype=int64)",),  # no text
    # A budget that is none; no strength, no site and no axis; up to the end.
    ("solvers.allocate", "budget"): ("inf",),
    ("solvers.lasso", "strengths_L"): ("array([], dtype=float64)",),
    **{(f.__name__, "sites"): ("[]",)
       for f in (bj.activation_bytes, bj.average_bits, bj.bops, bj.kernel_bytes)},
    # A collection of one number: a function's may be any tree.
    **{(f.__name__, "variables"): ("{'no/such': 1.0}",)
       for f in (bj.bits_of, bj.model_bytes)},
    ("Quantized", "axis_name"): ("[]",),
    ("Function", "axis_name"): ("[]",),
    ("data.train_batches", "stop"): ("None",),
    # The doctor says what is wrong with numbers; whether they may be complex, the model says.
    ("doctor", "batch"): None,
    # Seeds that are not common make no difference; variables without that collection stay.
    ("statistics.paired_difference", "values"): None,
    ("statistics.paired_difference", "baseline"): None,
    ("reestimate_batch_stats", "variables"): ("{'no/such': 1.0}",),
}  # fmt: skip
# JAX's own types, of which JAX says what is wrong; and who else a message may name.
OF_JAX = {"key", "precision"}
ALSO: dict[tuple[str, str], str] = {
    ("with_bits", "variables"): "bits",  # of whose sites they have none
    **{
        (tool, "batches"): "at least one batch"
        for tool in (
            "calibrate",
            "reestimate_batch_stats",
            "site_histograms",
            "fisher",
            "solve_layers",
        )
    },
    ("solvers.fit_output_codes", "x_TxN"): "gram_NxN",  # which is made of it
    ("data.held_out", "labels"): "count",
    ("data.train_batches", "start"): "step",
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(3, name="a")(x))
        return nn.Dense(2, name="b")(x)


@functools.cache
def things() -> Mapping[str, Any]:
    """A model of two layers under several rules, its variables, costs and batches."""
    x = jax.random.normal(jax.random.key(0), (8, 2))
    net = Net()
    plain = net.init(jax.random.key(1), x)
    quick = bj.Quantized(net, [bj.rule(".*", bj.uniform(bits=4))])
    learned = bj.Quantized(net, [bj.rule(".*", bj.bitlength(init=4.0))])
    stored = bj.Quantized(net, [bj.rule(".*/kernel", bj.ternary(fit="stored"))])
    planes = bj.Quantized(net, [bj.rule("b/input", bj.bitplane(bits=4))])
    solved = bj.Quantized(net, [bj.rule("b/input", bj.bitplane(bits=4, coefficients="solved"))])
    made = {"x": x, "net": net, "plain": plain}
    models = {"quick": quick, "learned": learned, "stored": stored, "planes": planes}
    for name, model in {**models, "solved": solved}.items():
        made[name] = model
        made[f"{name}_variables"] = bj.attach(model, plain, x)
    made["costs"] = bj.site_costs(net, x)
    made["bits"] = bj.bits_of(made["learned_variables"])
    made["histograms"] = bj.site_histograms(net, plain, [x], sites="b/input")
    made["curves"] = bj.rate_curves(made["histograms"])
    return made


RULES = [bj.rule(".*", bj.bitlength(init=4.0))]
PLANES = [bj.rule(".*", bj.bitplane(bits=4))]
STORED = [bj.rule(".*/kernel", bj.ternary(fit="stored"))]


def quantizer_bases() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """Factories of quantizers and of what they are made from."""
    made = [bj.uniform, bj.lsq, bj.pact, bj.bitlength, bj.bitplane, bj.halfwave, bj.hwgq,
            bj.ternary, bj.binary, bj.low_bit]  # fmt: skip
    return {
        **{f.__name__: (f, {}) for f in made},
        "gaussian_levels": (bj.gaussian_levels, {"bits": 2}),
        "gaussian_step": (bj.gaussian_step, {"bits": 2}),
        "rule": (bj.rule, {"pattern": ".*", "quantizer": bj.lsq()}),
        "budget": (bj.budget, {"metric": "bits", "limit": 3.0}),
        "freeze": (bj.freeze, {"quantizer": bj.lsq()}),
        "check_quantizer": (bj.check_quantizer, {"quantizer": bj.uniform()}),
    }


def method_bases() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """Methods with the least that they need."""
    trained = {"rules": RULES, "steps": 10}
    return {
        "full_precision": (methods.full_precision, {"steps": 10}),
        **{
            m.__name__: (m, trained)
            for m in (methods.uniform, methods.lsq, methods.pact, methods.twn, methods.hwgq)
        },
        "bitpruning": (methods.bitpruning, trained),
        "bottleneck": (methods.bottleneck, {"rules": PLANES}),
        "tsq": (methods.tsq, {"rules": STORED, "code_steps": 10}),
        "solved": (methods.solved, {"rules": STORED}),
        "measured": (methods.measured, {"rules": RULES, "budgets": (bj.budget("bits", 4.0),)}),
        "recipe.distillation": (recipe.distillation, {}),
        "optimizers.sgd": (optimizers.sgd, {}),
        "optimizers.adam": (optimizers.adam, {}),
        "optimizers.adamw": (optimizers.adamw, {}),
        "optimizers.scheduled": (
            optimizers.scheduled,
            {"direction": optimizers.sgd(), "learning_rate": 0.1, "steps": 10},
        ),
        "optimizers.tie": (optimizers.tie, {"pattern": ".*"}),
    }


def solver_bases() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """Solvers with the smallest problems."""
    x = np.asarray(jax.random.normal(jax.random.key(2), (12, 3)))
    w = np.asarray(jax.random.normal(jax.random.key(3), (2, 3)))
    y = x @ w.T
    gram, cross, energy = x.T @ x / 12, y.T @ x / 12, (y**2).mean(0)
    grid, start = np.array([-1.0, 0.0, 1.0]), np.sign(w)
    values, weights = np.linspace(0.0, 1.0, 5), np.full(5, 0.2)
    fit = solvers.fit_codes(gram, cross, energy, grid, start).value
    planes = np.eye(3) + 0.1
    sample = {"values_M": values, "weights_M": weights}
    return {
        "solvers.allocate": (
            solvers.allocate,
            {"costs": [[1, 2], [1, 2]], "losses": [[2.0, 1.0], [3.0, 1.0]], "budget": 3.0},
        ),
        "solvers.fit_codes": (
            solvers.fit_codes,
            {"gram_NxN": gram, "cross_MxN": cross, "energy_M": energy, "grid_G": grid,
             "start_MxN": start},
        ),
        "solvers.gptq_codes": (
            solvers.gptq_codes,
            {"gram_NxN": gram, "filters_MxN": w, "grid_G": grid, "scale_M": np.ones(2)},
        ),
        "solvers.adaround_codes": (
            solvers.adaround_codes,
            {"gram_NxN": gram, "filters_MxN": w, "grid_G": grid, "scale_M": np.ones(2)},
        ),
        "solvers.fit_output_codes": (
            solvers.fit_output_codes,
            {"x_TxN": x, "y_TxM": np.maximum(y, 0), "start": fit, "grid_G": grid, "levels": None},
        ),
        "solvers.fit_codes_to_samples": (
            solvers.fit_codes_to_samples,
            {"x_TxN": x, "z_TxM": y, "grid_G": grid, "start_MxN": start},
        ),
        "solvers.lasso": (
            solvers.lasso,
            {"gram_DxD": planes, "cross_D": np.ones(3), "strengths_L": np.array([0.1, 0.5])},
        ),
        "solvers.lasso_path": (
            solvers.lasso_path, {"gram_DxD": planes, "cross_D": np.ones(3), "energy": 3.0}
        ),
        "solvers.lloyd_max": (solvers.lloyd_max, {**sample, "num_levels": 3}),
        "solvers.free_scales": (solvers.free_scales, sample),
        "solvers.window_scales": (solvers.window_scales, {**sample, "unit": 0.1}),
        "solvers.select_planes": (
            solvers.select_planes, {"gram_DxD": planes, "cross_D": np.ones(3), "energy": 3.0}
        ),
    }  # fmt: skip


def tool_bases() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """What is called with a model, with costs and with bits."""
    the = things()
    x, costs, bits = the["x"], the["costs"], the["bits"]
    learned = {"model": the["learned"], "variables": the["learned_variables"]}
    plain = {"model": the["net"], "variables": the["plain"]}
    limits = {site: (1.0, 8.0) for site in bits}
    settings = dict(SolveOptions()._asdict(), starts=1)
    layer = accelerators.LayerBits(4.0, 4.0, 6, 6)
    return {
        "attach": (lambda model, variables: bj.attach(model, variables, x), learned),
        "calibrate": (bj.calibrate, {**learned, "batches": [x]}),
        "reestimate_batch_stats": (bj.reestimate_batch_stats, {**plain, "batches": [x]}),
        "site_costs": (lambda model: bj.site_costs(model, x), {"model": the["net"]}),
        "total_macs": (lambda model: bj.total_macs(model, x), {"model": the["net"]}),
        "summary": (lambda model, variables: bj.summary(model, variables, x), learned),
        "doctor": (bj.doctor, {**learned, "batch": x}),
        "tap": (
            lambda model, variables, layers: bj.tap(model, variables, x, layers=layers),
            {**plain, "layers": ".*"},
        ),
        "Quantized": (bj.Quantized, {"model": the["net"], "rules": RULES}),
        "Function": (bj.Function, {"fn": lambda params, x: x @ params["w"], "rules": RULES}),
        "quantize": (
            lambda model, rules, sums: bj.quantize(model, rules, x, sums=sums),
            {"model": nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "rules": RULES, "sums": False},
        ),
        "bits_of": (bj.bits_of, {"variables": the["learned_variables"]}),
        "with_bits": (bj.with_bits, {"variables": the["learned_variables"], "bits": bits}),
        "model_bytes": (bj.model_bytes, {"variables": the["learned_variables"], "costs": costs}),
        **{
            f.__name__: (f, {"bits": bits, "costs": costs})
            for f in (bj.activation_bytes, bj.average_bits, bj.bops, bj.kernel_bytes)
        },
        "macs": (bj.macs, {"costs": costs}),
        "inner_sites": (bj.inner_sites, {"costs": costs}),
        "penalty": (bj.penalty, {"quant": the["learned_variables"]["quant"], "costs": costs}),
        "round_bits": (bj.round_bits, {"bits": bits, "costs": costs, "limits": limits}),
        "site_histograms": (bj.site_histograms, {**plain, "batches": [x]}),
        "fisher": (bj.fisher, {**plain, "batches": [x]}),
        "rate_curves": (bj.rate_curves, {"histograms": the["histograms"]}),
        "allocate_rates": (
            bj.allocate_rates, {"curves": the["curves"], "costs": costs, "rate": 3.0}
        ),
        "allocate_bits": (
            bj.allocate_bits,
            {**learned, "batches": [x, x], "budgets": [bj.budget("bits", 16.0)], "trials": 0},
        ),
        "allocate": (
            bj.allocate,
            {"model": the["planes"], "variables": the["planes_variables"], "batches": lambda: [x]},
        ),
        "solve_layers": (
            lambda **given: bj.solve_layers(**given),
            {"model": the["stored"], "variables": the["stored_variables"], "batches": [x],
             "bits": None, "layers": ".*", "kwargs": None, "weights": None, "log": None,
             **settings},
        ),
        "accelerators.speedup": (
            accelerators.speedup, {"rule": accelerators.stripes, "layers": [layer]}
        ),
        "statistics.summarize": (statistics.summarize, {"values": [0.5, 0.6]}),
        "statistics.paired_difference": (
            statistics.paired_difference, {"values": {0: 0.5, 1: 0.6}, "baseline": {0: 0.4, 1: 0.4}}
        ),
    }  # fmt: skip


def data_bases() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """What makes batches."""
    digits, stream = data.load("digits"), np.array([1, 0, 2, 1, 0])
    tokens = data.token_dataset("own", stream, context=2, pieces=("a", "b", "c"))
    return {
        "data.load": (data.load, {"name": "digits"}),
        "data.batch_indices": (
            data.batch_indices, {"num_examples": 10, "batch_size": 2, "step": 0, "seed": 0}
        ),
        "data.train_batch": (
            data.train_batch, {"dataset": digits, "batch_size": 2, "step": 0, "seed": 0}
        ),
        "data.train_batches": (
            lambda **given: next(data.train_batches(**given)),
            {"dataset": digits, "batch_size": 2, "start": 0, "seed": 0, "stop": 1},
        ),
        "data.eval_batches": (
            lambda **given: next(data.eval_batches(**given)), {"dataset": digits, "batch_size": 2}
        ),
        "data.held_out": (
            held_out, {"labels": digits.labels, "count": 10, "num_classes": 10, "seed": 0}
        ),
        "data.check_dataset": (data.check_dataset, {"dataset": digits}),
        "data.token_dataset": (
            data.token_dataset, {"name": "own", "train": stream, "evaluation": stream, "context": 2}
        ),
        "data.decode": (data.decode, {"dataset": tokens, "tokens": np.array([1, 0])}),
        "Checkpoints": (Checkpoints, {"folder": "/tmp/none", "keep": 2}),
    }  # fmt: skip


def parameters_of(function: Callable, base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The annotation and a right value of each argument."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, each in inspect.signature(function).parameters.items():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            if typing.get_origin(each.annotation) is typing.Unpack:
                keys = typing.get_type_hints(typing.get_args(each.annotation)[0])
                fields = methods.Recipe._field_defaults
                found |= {key: (kind, fields[key]) for key, kind in keys.items()}
            continue
        right = base[name] if name in base else each.default
        found[name] = (each.annotation, right)
    for name in base.keys() - found.keys():
        found[name] = (type(base[name]), base[name])
    return {k: v for k, v in found.items() if k not in ("parent", "name") or k in base}


def cases(bases: Mapping[str, tuple[Callable, Mapping[str, Any]]]) -> Iterator[Case]:
    """The right call of each, then a call with each wrong value of each argument."""
    for title, (function, base) in bases.items():
        yield Case(f"{title}()", functools.partial(function, **base), good=True)
        for name, (annotation, right) in parameters_of(function, base).items():
            if name in OF_JAX:
                continue
            fine, also = FINE.get((title, name), ()), ALSO.get((title, name), name)
            for value in wrong_values(name, annotation, right):
                may = fine is None or shown(value) in fine
                call = functools.partial(function, **{**base, name: value})
                yield Case(f"{title}({name}={shown(value)})", call, (name, also), may_pass=may)


SURFACES = {
    "quantizers": quantizer_bases,
    "methods": method_bases,
    "solvers": solver_bases,
    "tools": tool_bases,
    "batches": data_bases,
}
