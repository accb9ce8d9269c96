"""From a trained model to a fixed one: whole bits, kernels at their levels, nothing observed."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import checked, instance
from bitjax.export.tables import MOST_BITS, Table, edges_of, is_nearest, table_of
from bitjax.frameworks.call import Model
from bitjax.frameworks.compiled import jit_each
from bitjax.frameworks.models import as_model, unboxed
from bitjax.frameworks.probe import ask_outside
from bitjax.program.naming import path_of
from bitjax.program.program import Program
from bitjax.program.values import Site
from bitjax.quantizers import blocks, deployed
from bitjax.quantizers.base import Numbers, Quantizer
from bitjax.quantizers.grid import inverse, steps
from bitjax.rules import Rule, Rules, quantizer_of
from bitjax.variables import QUANT, STATS, VARIABLES, nest, pick

_FLOAT = 32  # bits of a site that its quantizer leaves as it is
_ENDS = ("symmetric", "unsigned", "narrow")  # that follow from the bits


class Deployed(NamedTuple):
    """A model as it is taken away, and what evaluates to the figures that are reported.

    Attributes:
      model: the model under rules of which each gives a site its fixed numbers.
      variables: kernels at their levels in `params`; `quant` with the numbers of every site; no
        `quant_stats`.
    """

    model: Any
    variables: dict[str, Any]


DEPLOYED = instance(Deployed, hint="bitjax.deploy(model, variables, x) makes one.")


class _Told(NamedTuple):
    """What a site's quantizer says of itself."""

    numbers: Numbers | None
    table: Table | None  # where there are no numbers
    levels: jax.Array | None  # of a kernel
    nearest: jax.Array | None  # of an input with numbers: whether it rounds to the nearest
    follow: jax.Array | None  # whether its ends follow from the bits, for each of _ENDS
    inverse: jax.Array | None  # whether the rate is the inverse of the scale
    counted: jax.Array | None  # whether the last integer follows from the first and the bits


@checked(variables=VARIABLES)
def deploy(model: Model, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Deployed:
    """Fixes a model as evaluation has it, for files and for other runtimes.

    Bits are rounded, every kernel is held at its levels, and every site's numbers are leaves of
    `quant`. Sites without a rule stay float. Deploying again changes nothing.

    Args:
      model: a wrapped model.
      variables: all collections of the model.
      *args: positional arguments of the model; of a batch only the shapes count.
      **kwargs: keyword arguments of the model.

    Raises:
      ValueError: a site's bits lie between two integers; a kernel is computed of several
        parameters; or a quantizer has neither numbers nor rising codes, or scales each example by
        itself.

    Example:
      >>> import bitjax as bj, flax.linen as nn
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.uniform(bits=4))])
      >>> x = jnp.array([[1.0, 2.0, 4.0]])
      >>> variables = model.init(jax.random.key(0), x)
      >>> net, fixed = deploy(model, variables, x)
      >>> bool((net.apply(fixed, x) == model.apply(variables, x)).all()), sorted(fixed)
      (True, ['params', 'quant'])
    """
    net, variables = as_model(model), unboxed(variables)
    _, asked = ask_outside(net, variables, args, kwargs)
    program = asked.call.program
    every = _quantized(net.rules, program.sites, variables)
    chosen = {site: q for site, q in every.items() if not deployed.is_deployed(q)}
    kernels = _kernels(program, chosen, variables["params"])
    told = _told(chosen, program.sites, variables, kernels)
    forms = dict(every)
    leaves = dict(pick(variables.get(QUANT, {}), every))
    for site, quantizer in chosen.items():
        bits = np.rint(np.asarray(pick(variables[QUANT], [site])[site]["bits"], np.float32))
        forms[site], leaves[site] = _fixed(program.sites[site], quantizer, bits, told[site])
    levels = {program.parameters[site]: told[site].levels for site in kernels}
    kept = {name: tree for name, tree in variables.items() if name not in (QUANT, STATS)}
    kept["params"] = _at_levels(variables["params"], levels)
    if leaves:
        kept[QUANT] = nest(jax.device_put(leaves))
    return Deployed(net.with_rules(exact_rules(forms)), kept)


def _quantized(rules: Rules, sites: Mapping[str, Site], variables) -> dict[str, Quantizer]:
    """The quantizers of the sites that have codes."""
    found = {}
    for name in sites:
        quantizer = quantizer_of(rules, name)
        if quantizer is None:
            continue
        bits = np.asarray(pick(variables.get(QUANT, {}), [name]).get(name, {}).get("bits", np.nan))
        if np.isnan(bits).any():
            raise ValueError(f"{name!r} has no bits in `variables`: give those of this model.")
        if (bits != np.rint(bits)).any():
            raise ValueError(
                f"{name!r} has {bits.ravel()[0]:g} bits, which lie between two grids: round them "
                "first, by bitjax.round_bits and bitjax.with_bits."
            )
        if (bits < _FLOAT).all():
            found[name] = quantizer
    return found


def _kernels(program: Program, chosen, params) -> dict[str, jax.Array]:
    """The parameters of the kernels' sites."""
    origins = {}
    for body in program.body.all():
        readers = _readers(body)
        users = body.users()
        for number, (sites, ops, arrays) in readers.items():
            alone = number in body.ins and len(body.kinds[number].leaves) == 1
            others = [op for i in arrays for op in users.get(i, ()) if id(op) not in ops]
            for site in sites:
                if site.role == "kernel" and site.name in chosen:
                    origins[site.name] = alone
                    if alone and any(not op.bodies for op in others):
                        raise ValueError(
                            f"the kernel {site.name!r} is read as float, too, in "
                            f"{others[0].module or 'the model'!r} by {others[0].name!r}, and one "
                            "parameter cannot hold both: make it two, or leave the site float."
                        )
    by_path = {path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    found = {}
    for name, alone in origins.items():
        site, held = program.sites[name], by_path.get(program.parameters[name])
        whole = (*site.lengths, *site.shape)
        if not alone or held is None or np.shape(held) != whole:
            raise ValueError(
                f"the kernel {name!r} is computed of parameters when the model runs, so that no "
                "parameter can hold its codes: make it a parameter of the model first."
            )
        found[name] = held
    return found


def _readers(body) -> dict[int, tuple[list[Site], set[int], set[int]]]:
    """By origin its sites, the operations between it and its products, and what these give."""
    found: dict[int, tuple[list[Site], set[int], set[int]]] = {}
    for op in body.ops:
        for operand in op.product.operands.values() if op.product is not None else ():
            for number, site in operand.origins.items():
                sites, ops, arrays = found.setdefault(number, ([], set(), {number}))
                sites.append(site)
                ops.update(map(id, (op, *operand.moves)))
                if len(operand.origins) == 1:
                    arrays.update(i for move in operand.moves for i in move.outs)
    return found


def _told(chosen, sites, variables, kernels) -> dict[str, _Told]:
    """What all quantizers say."""
    quant, stats = (pick(variables.get(c, {}), chosen) for c in (QUANT, STATS))
    bits = {name: int(np.max(np.rint(quant[name]["bits"]))) for name in chosen}
    for name, quantizer in chosen.items():
        _check_form(name, quantizer, bits[name])

    def ask(function, names, static, kernels):
        def call(name):
            given = quant[name], stats.get(name, {}), kernels.get(name)
            return (function, chosen[name], len(sites[name].steps), *static(name)), given

        return jax.device_get(jit_each(_of_steps, {name: call(name) for name in names}))

    def about(name):
        # Only a table depends on the bits as a shape: other sites share a program.
        own = None if _has_numbers(chosen[name]) else bits[name]
        return sites[name].axes, own

    told = ask(_ask, chosen, about, kernels)
    bent = [n for n, one in told.items() if one.nearest is not None and not np.all(one.nearest)]
    for name, table in ask(_by_edges, bent, lambda name: (1 << bits[name],), {}).items():
        told[name] = told[name]._replace(table=table)
    for name, quantizer in chosen.items():
        table = told[name].table
        if table is not None and not np.all(table.fits):
            raise ValueError(
                f"{name!r}: the codes of {quantizer.name!r} do not rise with what they stand for, "
                "so that no file can tell how it quantizes: leave the site float."
            )
    return told


def _of_steps(function, quantizer, depth, *given):
    """A function of a quantizer and a site's leaves, for every step of the scans around it."""
    *static, params, stats, kernel = given
    one = partial(function, quantizer, *static)
    for _ in range(depth):
        one = jax.vmap(one)
    return one(params, stats, kernel)


def _has_numbers(quantizer):
    return quantizer.numbers is not None and quantizer.integers is not None


def _ask(quantizer, axes, bits, params, stats, kernel):
    """What a quantizer says of a site; a kernel's levels are those of evaluation."""
    if kernel is not None and quantizer.measure is not None and quantizer.update is not None:
        # A kernel's range is that of the kernel itself.
        start = jax.eval_shape(lambda x: quantizer.init(x, axes)[1], kernel)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)
        stats = quantizer.update(start, quantizer.measure(params, start, kernel))
    if not _has_numbers(quantizer):
        levels = None
        if kernel is not None:
            codes = quantizer.encode(params, stats, kernel)
            levels = quantizer.decode(params, stats, codes)
        return _Told(None, table_of(quantizer, params, stats, bits), levels, None, None, None, None)
    numbers = quantizer.numbers(params, stats)
    follow = [_follows(numbers, params["bits"], quantizer.traits.coding, ends) for ends in _ENDS]
    about = (
        jnp.stack(follow),
        jnp.all(numbers.rate == inverse(numbers.scale)),
        jnp.all(numbers.last == numbers.first + steps(jnp.rint(params["bits"]))),
    )
    if kernel is None:
        return _Told(numbers, None, None, is_nearest(quantizer, params, stats), *about)
    whole = quantizer.integers(params, stats, kernel)
    return _Told(numbers, None, blocks.spread(numbers.scale, kernel.shape) * whole, None, *about)


def _follows(numbers, bits, coding, ends):
    first, last = deployed.ends_of(bits, coding, ends)
    return jnp.all(numbers.first == first) & jnp.all(numbers.last == last)


def _by_edges(quantizer, count, params, stats, kernel):
    del kernel  # only inputs have edges beside their numbers
    edges, fits = edges_of(quantizer, params, stats, count)
    return Table(edges, edges, fits)  # levels are integers times the scale


def _check_form(name, quantizer, bits):
    planes = quantizer.traits.planes
    if planes is not None and planes.scale == "example":
        raise ValueError(
            f"{name!r}: {quantizer.name!r} scales each example by itself, which no file holds: "
            "train with mode='strong'."
        )
    if quantizer.numbers is None and bits > MOST_BITS:
        raise ValueError(
            f"{name!r}: {quantizer.name!r} has no `numbers`, and a table of its {bits} bits would "
            f"have {1 << bits} levels: give it at most {MOST_BITS} bits or zero_on_grid=True."
        )


def _fixed(site, quantizer, bits, told) -> tuple[Quantizer, dict[str, Any]]:
    """The deployed quantizer of a site, and its leaves."""
    kernel = site.role == "kernel"
    if told.numbers is None:
        leaves = {"bits": bits, "levels": told.table.levels}
        if kernel:  # which lies on its levels, whatever their order was
            leaves["levels"] = jnp.sort(told.table.levels, axis=-1)
        else:
            leaves["edges"] = told.table.edges
        return deployed.table(), leaves
    scale, rate, first, _ = told.numbers
    leaves = {"bits": bits, "scale": scale}
    # Of a scan every step has its own numbers.
    fit = [ends for i, ends in enumerate(_ENDS) if np.all(np.asarray(told.follow)[..., i])]
    ends = fit[0] if fit else "stored"
    coding = quantizer.traits.coding
    if ends == "stored":
        if coding != "offset" or not np.all(told.counted):
            raise ValueError(
                f"{site.name!r}: the `numbers` of {quantizer.name!r} do not end where its bits do, "
                "and no file holds both ends: let them be 2^bits integers from the first one."
            )
        leaves["first"] = first
    if not kernel and not np.all(told.inverse):
        leaves["rate"] = rate
    if told.table is not None:
        leaves["edges"] = told.table.edges
    return deployed.affine(coding, ends), leaves


def _at_levels(params, levels):
    """Parameters with these by path replaced."""

    def replace(path, leaf):
        found = levels.get(path_of(path))
        if found is None:
            return leaf
        # Integers have no minus zero, so neither has what is read back from codes.
        return jax.device_put(np.where(found == 0, np.zeros_like(found), found).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(replace, params)


def exact_rules(forms: Mapping[str, Quantizer]) -> Rules:
    """One rule for each form; it names its sites one by one."""
    by_form: dict[Any, tuple[Quantizer, list[str]]] = {}
    for site, quantizer in forms.items():
        # A rule for `layer/input` names all calls of the layer: one of several stands before it.
        key = ("@" not in site, id(quantizer))
        by_form.setdefault(key, (quantizer, []))[1].append(site)
    return tuple(
        Rule("|".join(map(re.escape, sites)), quantizer)
        for _, (quantizer, sites) in sorted(by_form.items(), key=lambda item: item[0][0])
    )
