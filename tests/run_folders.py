"""Makes run folders for tests of what reads them, as a run leaves them."""

import json
import math
import random
from pathlib import Path

from bitjax.runs.folder import config_hash

LAYERS = (  # name, MACs, weights, elements of the input
    ("conv1", 9216, 144, 64),
    ("conv2", 73728, 4608, 1024),
    ("conv3", 73728, 18432, 512),
    ("head", 2560, 2560, 256),
)


def write_run(
    folder: Path,
    *,
    method="lsq",
    seed=0,
    accuracy=0.9,
    measured=None,
    cache=None,
    bits=(4, 4),
    name=None,
    model=None,
    data="digits",
    split="test",
    settings=None,
    layers=LAYERS,
    rows=20,
    **result,
) -> Path:
    """A finished run's folder; `bits` are of weights and inputs, `result` replaces its keys.

    `measured` are the figures of a language model instead of a classifier's accuracy, its score
    first, and `cache` its bytes per token.
    """
    folder.mkdir(parents=True)
    figures = measured or {"accuracy": accuracy, "loss": 0.1}
    score, reached = next(iter(figures.items()))
    higher, form = (False, "{:.4f}") if measured else (True, "{:.2%}")
    name = name or f"digits/{method}"
    config = {
        "name": name,
        "seed": seed,
        "model": model or {"name": "small_cnn", "num_classes": 10},
        "data": {"name": data, "eval_split": split, "validation": 0},
        "method": {"name": method, "steps": 10 * rows},
        "init_from": "",
        "rules": [[".*", {"name": method, "bits": bits[0]}]],
        **(settings or {}),
    }
    sites = [
        (f"{layer}/{role}", role, b, macs, elements)
        for layer, macs, weights, inputs in layers
        for role, b, elements in (("kernel", bits[0], weights), ("input", bits[1], inputs))
    ]
    mean = {"weights": bits[0], "activations": bits[1]}
    mean["all"] = mean["inner"] = sum(bits) / 2
    macs = sum(layer[1] for layer in layers)
    value = {
        score: reached,
        "status": "finished",
        "method": method,
        "data": data,
        "eval_split": split,
        "seed": seed,
        "name": name,
        "model": config["model"]["name"],
        "config": f"configs/{name}.py",
        "config_hash": config_hash(config),
        "commit": "0123456789ab",
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "device": "cpu: 2 x Test",
        "wall_seconds": 12.5,
        "steps": 10 * rows,
        "score": {"name": score, "value": reached, "higher_is_better": higher, "form": form},
        "stages": [{"name": "train", "steps": 10 * rows, **figures, "wall_seconds": 12.0}],
        "bits": {k: {"fractional": v + 0.25, "integer": v} for k, v in mean.items()},
        "cost": {
            "model_bytes": sum(layer[2] for layer in layers) * bits[0] / 8,
            "float_model_bytes": 4.0 * sum(layer[2] for layer in layers),
            "activation_bytes": sum(layer[3] for layer in layers) * bits[1] / 8,
            "bops": float(macs * bits[0] * bits[1]),
            "macs": macs,
            **({} if cache is None else {"cache_bytes_per_token": cache}),
        },
        **result,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(value))
    lines = ["site,role,bits_fractional,bits_integer,macs,elements"]
    lines += [f"{site},{role},{b + 0.25},{b},{m},{e}" for site, role, b, m, e in sites]
    (folder / "bits.csv").write_text("\n".join(lines) + "\n")
    metrics = [
        {"step": 10 * (i + 1), "stage": "train", "loss": math.exp(-i / rows), "seconds": 0.1 * i,
         score: reached * (1 - math.exp(-5 * i / rows)), "bits": sum(bits) / 2 + 4 / (i + 1)}
        for i in range(rows)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def write_many(root: Path, count: int, rows: int = 300) -> list[Path]:
    """As many runs as asked for: methods at several bits with five seeds each, 20 layers deep."""
    draw = random.Random(0)
    layers = [(f"stage{i // 6}/block{i % 6}/conv", 2_359_296, 2304 * (1 + i // 6), 16_384)
              for i in range(18)]  # fmt: skip
    layers = [("conv1", 442_368, 432, 3072), *layers, ("head", 640, 640, 64)]
    methods = ("full_precision", "uniform", "lsq", "pact", "bitpruning", "tsq", "bottleneck", "twn")
    folders = []
    for i in range(count):
        seed, setting = i % 5, i // 5
        method = methods[setting % len(methods)]
        wide = 32 if method == "full_precision" else 2 + setting // len(methods)
        accuracy = 0.92 - 0.3 / wide**2 + draw.gauss(0, 0.002)
        folders.append(
            write_run(
                root / f"{method}-{wide}-{setting}-s{seed}",
                method=method,
                seed=seed,
                name=f"cifar10/{method}_w{wide}_{setting}",
                accuracy=accuracy,
                bits=(wide, wide),
                layers=layers,
                data="cifar10",
                rows=rows,
            )
        )
    return folders
