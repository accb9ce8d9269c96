"""Runs a file of a deployed model elsewhere, and compares each site with evaluation."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.checks import checked, choice, either
from bitjax.export import law
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.export.forms import spread
from bitjax.export.integer_model import IntegerModel, compiled, integer_model
from bitjax.export.law import ImageDifferences, Verdict
from bitjax.export.margins import margins
from bitjax.export.nodes import LOOKUP, Ran, arrays_of, tensors_of

RUNTIMES = ("onnxruntime", "qonnx", "numpy", "jax", "jax.export")


class SiteCheck(NamedTuple):
    """How many numbers of a site or of a product differ.

    Attributes:
      name: the site; of sums the layer. A layer's second call has `@2` behind it.
      kind: `codes`, or `sums` of products before their scale.
      count: how many there are.
      differ: how many of them differ from evaluation.
    """

    name: str
    kind: str
    count: int
    differ: int


class ExportCheck(NamedTuple):
    """How a file in its runtime parts from evaluation; `print` shows it as a table.

    Attributes:
      file: the file's name.
      format: `packed`, `qdq`, `integers`, `qonnx` or `stablehlo`.
      runtime: what ran it.
      versions: of the packages that did.
      sites: codes of inputs in forward order, then sums; what the file does not show is not there.
      first: the first site of which a code differs; empty if none does.
      images: the differences of each image.
    """

    file: str
    format: str
    runtime: str
    versions: dict[str, str]
    sites: tuple[SiteCheck, ...]
    first: str
    images: ImageDifferences

    @property
    def verdict(self) -> Verdict:
        """What the law of two runtimes says: see `bitjax.export.law`."""
        return law.judge(self.images)

    @property
    def outputs(self) -> float:
        """The largest difference of the outputs, relative to their spread; 0 is bit for bit."""
        return float(self.images.outputs.max(initial=0.0))

    @property
    def margin(self) -> float:
        """How far from a boundary, relative to it, a value lies that got another code; at most."""
        return float(self.images.margin.max(initial=0.0))

    def __str__(self) -> str:
        return "\n".join([*_table(self.sites), *_summary(self)])


@checked(
    deployed=DEPLOYED,
    runtime=either(choice(""), choice(*RUNTIMES)),
)
def check_export(
    path: str | os.PathLike, deployed: Deployed, *batch: Any, runtime: str = "", **kwargs: Any
) -> ExportCheck:
    """Runs a file in the runtime that it is for, and compares codes, sums and outputs.

    Evaluation in JAX is what the figures of a run are of, and so the measure. A file's own codes
    and sums are read from it, so what is compared is the file and not what wrote it.

    Args:
      path: a file of `bitjax.save_packed` (.safetensors), `bitjax.to_onnx` (.onnx) or
        `bitjax.to_stablehlo` (.stablehlo).
      deployed: the model that was written.
      *batch: positional arguments of the model, a batch of examples.
      runtime: the default is ONNX Runtime for the profiles `qdq` and `integers`, the executor of
        QONNX for `qonnx`, a plain program in NumPy for a packed file, `jax.export` for StableHLO.
        `jax` runs a packed file as bitjax does.
      **kwargs: keyword arguments of the model.

    Returns:
      What differs, by site and by image.

    Raises:
      ValueError: one line, for a file that is damaged, foreign, or of another model.
      ImportError: the runtime is not installed; the extra `export` has it.

    Example:
      >>> import bitjax as bj, tempfile
      >>> from bitjax.models import MLP
      >>> net = bj.Quantized(MLP((8,)), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
      >>> fixed = bj.deploy(net, net.init(jax.random.key(0), x), x)
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> size = bj.save_packed(path, fixed, x)
      >>> check_export(path, fixed, x).verdict.holds
      True
    """
    checker = Checker(path, deployed, *batch, runtime=runtime, **kwargs)
    return checker(*batch, **kwargs)


class Checker:
    """A file and the model that it should be, both ready to run batch after batch."""

    def __init__(
        self, path: str | os.PathLike, deployed: Deployed, *args: Any, runtime: str = "", **kwargs
    ):
        from bitjax.export.runtimes import open_file  # `import bitjax` is lighter without it

        self.file = Path(path).name
        self.own: IntegerModel = integer_model(deployed, *args, **kwargs)
        graph = self.own.graph
        self.runtime = open_file(path, deployed, graph, args, kwargs, runtime)
        self._numbers = tensors_of(graph)
        self._nodes = {out: node for node in graph.nodes for out in node.outs}
        self._before = None

    def __call__(self, *args: Any, **kwargs: Any) -> ExportCheck:
        """The check on a batch."""
        own = jax.device_get(self.own.sites(*args, **kwargs))
        other = self.runtime.run(*args, **kwargs)
        count = _count(self.own, args, kwargs)
        theirs = {n: self._integers(n, own.integers[n], x) for n, x in other.integers.items()}
        parted = {name: own.integers[name] != x for name, x in theirs.items()}
        sums = {name: own.sums[name] != np.asarray(x) for name, x in other.sums.items()}
        codes = _by_image(parted, count)
        differ = np.sum([x.sum(1) for x in codes.values()], 0) if codes else np.zeros(count, int)
        of_sums = _by_image(sums, count)
        more = np.sum([x.sum(1) for x in of_sums.values()], 0) if sums else np.zeros(count, int)
        margin = np.zeros(count)
        if differ.any():
            margin = self._margins(own, theirs, parted, args, kwargs)
        outputs = _parted(own.out, other.out, count)
        best, found = (_best(x, count) for x in (own.out, self.runtime.outputs(*args, **kwargs)))
        images = ImageDifferences(differ, np.where(differ, 0, more), margin, outputs, best, found)
        rows = [SiteCheck(n, "codes", x.size, int(x.sum())) for n, x in parted.items()]
        rows += [SiteCheck(n, "sums", x.size, int(x.sum())) for n, x in sums.items()]
        first = next((row.name for row in rows if row.kind == "codes" and row.differ), "")
        told = self.runtime
        return ExportCheck(
            self.file, told.format, told.name, told.versions, tuple(rows), first, images
        )

    def _integers(self, name: str, own: np.ndarray, found: Any) -> np.ndarray:
        """Integers of the runtime, or levels of a table."""
        found, node = np.asarray(found), self._nodes[self._numbers[name]]
        if found.shape != own.shape:
            raise _of_another(found, own)
        if not self.runtime.levels or node.op == LOOKUP:
            return found.astype(own.dtype)
        scale = np.where(np.asarray(node.params["rate"]) > 0, node.params["scale"], 1)
        steps = found / spread(scale, own.shape)
        whole = np.rint(steps)
        # What is no multiple of the scale is no level, and equal to no code.
        is_level = np.abs(steps - whole) < 1e-2
        return np.where(is_level, whole, np.iinfo(np.int32).min).astype(own.dtype)

    def _margins(self, own: Ran, theirs, parted, args, kwargs) -> np.ndarray:
        """How far the values at the first site that differs lie from the boundary, by image."""
        before = self._tensors(args, kwargs)
        count = _count(self.own, args, kwargs)
        found, open_images = np.zeros(count), np.ones(count, bool)
        for name, differs in parted.items():
            by_image = differs.reshape(count, -1)
            here = by_image.any(1) & open_images
            if here.any():
                node, each = self._nodes[self._numbers[name]], np.zeros(differs.shape)
                each[differs] = margins(node, before[name], own.integers[name], theirs[name])
                found[here] = each.reshape(count, -1).max(1)[here]
                open_images &= ~here
        return found

    def _tensors(self, args, kwargs) -> dict[str, np.ndarray]:
        """What sites quantize, as floats; its program is compiled where something differs."""
        graph = self.own.graph
        before = {
            result: tensor
            for place in graph.sites.values()
            for tensor, result in zip(place.tensors, place.results, strict=True)
        }
        wanted = [before[number] for number in self._numbers.values()]
        if self._before is None:
            tree = jax.tree.structure(wanted)
            self._before = compiled(graph._replace(outputs=tuple(wanted), out_tree=tree))
        out = self._before(self.own.held, arrays_of(graph, args, kwargs), sites=False).out
        return dict(zip(self._numbers, map(np.asarray, out), strict=True))


def joined(checks: Sequence[ExportCheck]) -> ExportCheck:
    """The checks of several batches as one."""
    rows = zip(*(check.sites for check in checks), strict=True)
    sites = tuple(
        SiteCheck(row[0].name, row[0].kind, sum(r.count for r in row), sum(r.differ for r in row))
        for row in rows
    )
    first = next((row.name for row in sites if row.kind == "codes" and row.differ), "")
    images = law.joined([check.images for check in checks])
    return checks[0]._replace(sites=sites, first=first, images=images)


def _count(model: IntegerModel, args, kwargs) -> int:
    """How many examples a call has; one where a model is made for one batch alone."""
    graph = model.graph
    if graph.batch is None:
        return 1
    given = arrays_of(graph, args, kwargs)
    for number, x in given.items():
        value = graph.values[number]
        if value.batch_axis is not None:
            return x.shape[value.batch_axis] // value.growth[value.batch_axis]
    return 1


def _by_image(values: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: x.reshape(count, -1) for name, x in values.items()}


def _of_another(found: np.ndarray, own: np.ndarray) -> ValueError:
    return ValueError(
        f"the file gives an array of shape {found.shape}, where evaluation has {own.shape}: it is "
        "of another model."
    )


def _parted(own: Any, other: Any, count: int) -> np.ndarray:
    """The largest difference of each image's outputs, relative to their spread in the batch."""
    worst = np.zeros(count)
    pairs = zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True)
    for ours, theirs in ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs):
        if ours.shape != theirs.shape:
            raise _of_another(theirs, ours)
        apart = np.abs(ours - theirs).reshape(count, -1).max(1)
        worst = np.maximum(worst, apart / max(np.ptp(ours), np.finfo(np.float32).tiny))
    return worst


def _best(out: Any, count: int) -> np.ndarray:
    """Where the outputs of each image are largest, along the last axis."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(out)]
    found = [x.argmax(-1).reshape(count, -1) for x in leaves if x.ndim > 1 and x.shape[-1] > 1]
    return np.concatenate([np.zeros((count, 0), int), *found], 1)


def _table(sites: Sequence[SiteCheck]) -> list[str]:
    if not sites:
        return []
    wide = max(len(row.name) for row in sites)
    lines = [f"{'site':<{wide}}  {'':5} {'count':>12} {'differ':>10}"]
    return lines + [f"{r.name:<{wide}}  {r.kind:5} {r.count:>12,} {r.differ:>10,}" for r in sites]


def _summary(check: ExportCheck) -> list[str]:
    verdict, count = check.verdict, len(check.images.codes)
    versions = ", ".join(f"{name} {number}" for name, number in check.versions.items())
    lines = [f"{check.file}: {check.format} in {check.runtime} ({versions}), {count} images"]
    if check.first:
        lines.append(
            f"codes differ first at {check.first}, of values that lie within {check.margin:.1e} of "
            "a boundary"
        )
    lines.append(
        f"outputs differ by at most {check.outputs:.1e} of their spread; top-1 agrees on "
        f"{verdict.top1:.2%}"
    )
    lines.append(
        f"{verdict.same} images are the same, {verdict.border} part at a boundary, "
        f"{verdict.broken} are broken: the law {'holds' if verdict.holds else 'is broken'}"
    )
    return lines
