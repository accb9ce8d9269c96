"""Draws distortion against rate for a config's input sites: quantizers, best levels, the limit.

Prints the medians that the picture shows, and what an allocation over the sites saves of the loss
that their errors are predicted to cost (Fisher information times squared error), against equal
rates.

python -m experiments.rate_distortion cifar10/resnet20_bottleneck_a4 \\
    --out results/rate_distortion.png
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.launch.config_files import load_config

RATES = "planes per element"
_RATES = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0)


def site_curves(histogram, max_bits: int) -> dict[str, np.ndarray]:
    """SQNR in dB of a site at 1 to `max_bits` bits per element, by quantizer."""
    from bitjax.bottleneck.curves import rate_curves
    from bitjax.bottleneck.measures import moments, sample
    from bitjax.solvers.lloyd_max import lloyd_max

    points = sample(histogram, per_bin=2)
    energy = moments(histogram).energy
    distortion = {
        grid: rate_curves({"": histogram}, grid=grid, max_bits=max_bits)[""].distortion
        for grid in ("free", "window", "truncated")
    }
    best = lloyd_max(points.values, points.weights, 2**max_bits)
    distortion["Lloyd-Max"] = np.array(
        [best.stats["by_levels"][2**k - 1] + points.within for k in range(1, max_bits + 1)]
    )
    return {name: 10 * np.log10(energy / np.maximum(d, 1e-300)) for name, d in distortion.items()}


def allocation_rows(curves, costs, weights, rates) -> list[tuple[float, float, float]]:
    """(rate, predicted loss at equal rates, and allocated), in nats per example.

    Between whole rates neighbouring sites alternate, the better way round.
    """
    from bitjax.bottleneck.rates import allocate_rates

    sites = list(curves)
    price = np.array([weights[s] * costs[s].elements / 2 for s in sites])
    loss = price[:, None] * np.array([curves[s].distortion for s in sites])
    every, rows = np.arange(len(sites)), []
    for rate in rates:
        low, high = int(np.floor(rate)) - 1, int(np.ceil(rate)) - 1
        turns = (np.where(every % 2 == turn, low, high) for turn in (0, 1))
        equal = min(float(loss[every, place].sum()) for place in turns)
        found = allocate_rates(curves, costs, rate, weights=weights, max_bits=loss.shape[1])
        rows.append((rate, equal, found.objective))
    return rows


def draw(curves: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Each site's free-scale points, the medians of all quantizers, and the half-normal's bound."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from bitjax.report.plots import distortion_rate

    median = medians(curves)
    shown = {
        "best scale (uniform): sites and median": [site["free"] for site in curves.values()],
        "window of an 8-bit code": median["window"],
        "Lloyd-Max levels": median["Lloyd-Max"],
        "truncated planes (as the authors' program)": median["truncated"],
    }
    bits = np.arange(1, len(median["free"]) + 1)
    limit = {"Shannon's lower bound, half-normal": bound(bits)}
    axes = distortion_rate(bits.tolist(), shown, limit)
    axes.set(xlabel=RATES, title=f"medians over {len(curves)} sites", xticks=bits)
    plt.gcf().savefig(path, dpi=160)
    plt.close(plt.gcf())


def medians(curves: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """SQNR in dB by quantizer, the median over sites at every rate."""
    names = next(iter(curves.values()))
    return {name: np.median([site[name] for site in curves.values()], axis=0) for name in names}


def bound(bits: np.ndarray) -> np.ndarray:
    """The highest SQNR in dB that any code of a half-normal source can have."""
    from bitjax.quantizers.bounds import half_normal_bound

    return np.array([-10 * np.log10(half_normal_bound(float(k))) for k in bits])


def distortion_value(curves: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """What `distortion.json` in a run's folder holds, for the page that compares runs."""
    sqnr = {name: values.tolist() for name, values in medians(curves).items()}
    bits = np.arange(1, len(sqnr["free"]) + 1)
    sqnr["bound: half-normal"] = bound(bits).tolist()
    return {"rates": bits.tolist(), "sqnr": sqnr}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "python -m experiments.rate_distortion")
    parser.add_config()
    kinds = ".png .pdf .svg"
    parser.add_file("out", "picture to write", default="rate_distortion.png", kinds=kinds)
    parser.add_file("json", "also write the medians: RUN/distortion.json, say")
    parser.add_count("batches", "calibration batches", default=8)
    parser.add_count("max_bits", "highest rate", most=8, default=6)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Counts the sites of the config's float model and draws them."""
    args = parse(argv)
    from bitjax.bottleneck.curves import rate_curves
    from bitjax.bottleneck.of_sites import site_histograms
    from bitjax.bottleneck.sensitivity import fisher
    from bitjax.launch.build import build_work
    from bitjax.rules import quantizer_of
    from bitjax.runs.rows import write_json
    from bitjax.variables import floats_of

    work = build_work(load_config(args.config, args.overrides))
    rules = next((s.rules for s in work.method.stages if s.rules), ())
    sites = [s for s in work.costs if (q := quantizer_of(rules, s)) and q.traits.planes]
    if not sites:
        raise ValueError("the config has no site with a `bitplane` quantizer: choose another.")
    floats = floats_of(work.start)
    chosen = "|".join(map(re.escape, sites))
    batches = list(work.batches(args.batches, False))
    seen = site_histograms(work.model, floats, batches, sites=chosen)
    weights = fisher(work.model, floats, batches, sites=chosen)
    allocated = allocation_rows(rate_curves(seen), work.costs, weights, _RATES)
    curves = {site: site_curves(found, args.max_bits) for site, found in seen.items()}
    draw(curves, Path(args.out))
    if args.json:
        write_json(args.json, distortion_value(curves))
    print("SQNR in dB, median over sites:")
    median = medians(curves)
    for name in ("truncated", "window", "free", "Lloyd-Max"):
        print(f"  {name:10s} " + "  ".join(f"{value:5.2f}" for value in median[name]))
    print("predicted loss of a rate, nats per example: equal rates, allocated, saved")
    for rate, equal, found in allocated:
        print(f"  {rate:.1f}  {equal:.5f}  {found:.5f}  {100 * (1 - found / equal):.0f} %")
    print(args.out)


if __name__ == "__main__":
    with front_door(compiles=True):
        main()
