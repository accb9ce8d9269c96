"""Adds the variables of a model's quantizers to those of its float layers."""

from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from bitjax.checks import checked
from bitjax.frameworks.calibrate import Variables, observe, raise_nonfinite
from bitjax.frameworks.call import Model, run
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.finite import first_nonfinite
from bitjax.frameworks.kinds import advice, is_wrapped
from bitjax.frameworks.later import later_call, later_sites
from bitjax.frameworks.shapes import one_key
from bitjax.variables import QUANT, STATS, VARIABLES, floats_of

_NEW = (QUANT, STATS)


@checked(variables=VARIABLES)
def attach(model: Model, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Variables:
    """Adds the variables of a model's quantizers to those of a float or otherwise quantized model.

    A leaf that is there stays if the site's quantizer has one of the same name and shape. Missing
    leaves are made; leaves and sites that are gone are dropped. A new leaf is fitted to this batch,
    to the tensor behind all the quantizers before it, at the bits that its quantizer starts from
    (even if the site keeps other bits). Its history begins with this batch. Sites that only the
    training call has, as an auxiliary classifier's, start from that call; the float parameters
    must have been made with `train=True`. A training call that needs other arguments is attached
    in a second step, `attach(model, variables, x, y, train=True)`, which leaves the sites of the
    first one as they are.

    Args:
      model: the wrapped model. The variables of a function are `{"params": its parameters}`.
      variables: `params`, `batch_stats` and other collections, with or without `quant` and
        `quant_stats`.
      *args: one real batch, the positional arguments of the model.
      **kwargs: keyword arguments of the model; `train=True` in a second step only.

    Returns:
      `quant` and `quant_stats`, and every other collection as given, bit for bit.

    Raises:
      TypeError: the model is in none of bitjax's wrappers.
      ValueError: a rule does nothing, or a tensor holds NaN or inf (which names its site).

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import bitjax as bj
      >>> x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
      >>> variables = nn.Dense(2).init(jax.random.key(0), x)
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.uniform(bits=4))])
      >>> sorted(attach(model, variables, x)["quant"])
      ['input', 'kernel']
    """
    if not is_wrapped(model):
        raise TypeError(f"attach needs a wrapped model, got {advice(model)}.")
    net: Model = model.with_rules(model.rules)
    # New dicts, so that a change to one set of variables leaves the other one alone.
    floats = jax.tree.map(lambda x: x, floats_of(variables))
    old: dict[str, dict[Any, Any]] = {n: flatten_dict(variables.get(n, {})) for n in _NEW}
    only = _later(net, floats, args, kwargs)
    # A float model keeps nothing that would have to fit, and one trace is saved.
    want: dict[str, dict[Any, Any]] = {name: {} for name in _NEW}
    if any(old.values()):
        want = _shapes(_structure(net, floats, args, kwargs, only))
    kept = {
        name: {p: x for p, x in old[name].items() if p in want[name] and x.shape == want[name][p]}
        for name in _NEW
    }
    made, finite = jit_arrays(
        _filled, floats, kept, args, kwargs, static=(net, only, want), **compile_quickly()
    )
    # Leaves that were kept did not pass through the program: they are the caller's own arrays.
    result = {name: unflatten_dict({**made[name], **kept[name]}) for name in _NEW}
    result = {**floats, **{name: tree for name, tree in result.items() if tree}}
    if not finite:
        training = net.as_training(args, kwargs) if only else None
        if training and first_nonfinite(model, result, *args, **kwargs) is None:
            args, kwargs = training
        raise_nonfinite("the batch", model, result, args, kwargs)
    return result


def _filled(net, only, want, floats, kept, args, kwargs):
    """All leaves, with those of `kept` as they are, and whether all tensors are finite."""

    def fill(given):
        """Makes the missing leaves, with the sites of `given` as they are."""
        tree = {name: unflatten_dict(given[name]) for name in _NEW}
        made = _made(net, only, {**floats, **tree}, args, kwargs)
        return {name: {p: kept[name].get(p, x) for p, x in made[name].items()} for name in _NEW}

    whole = _whole_sites(kept, want)
    full = fill(whole)
    if any(len(whole[name]) < len(kept[name]) for name in _NEW):
        # In the first pass, layers behind a site with missing leaves saw new leaves only.
        partly = _sites(kept)
        given = {n: {p: x for p, x in full[n].items() if p[:-1] in partly} for n in _NEW}
        full = fill(given)
    tree = {name: unflatten_dict(full[name]) for name in _NEW}
    moved, finite = _moved(net, {**floats, **tree}, args, kwargs, only)
    stats = {p: kept[STATS].get(p, moved.get(p, x)) for p, x in full[STATS].items()}
    return {QUANT: full[QUANT], STATS: stats}, finite


def attached_shapes(
    model: Any, floats: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The shapes of `quant` and `quant_stats` as `attach` makes them, computing nothing."""
    net = model.with_rules(model.rules)
    flat = _structure(net, floats, args, kwargs, _later(net, floats, args, kwargs))
    return {name: unflatten_dict(leaves) for name, leaves in flat.items() if leaves}


def _asked(net, variables, args, kwargs):
    """A call that may change every other collection, as a cache does; the changes are dropped."""
    mutable = [name for name in variables if name not in ("params", *_NEW)]
    return net.ask(variables, args, kwargs, rngs=one_key(), mutable=mutable)


def _later(net, floats, args, kwargs):
    """The sites that only the training call has."""
    asked = _asked(net, floats, args, kwargs)
    return later_sites(asked, later_call(net, asked, floats, args, kwargs, one_key()))


def _made(net, only, variables, args, kwargs):
    """The quantizers' leaves by path; those that are missing are made."""
    asked = _asked(net, variables, args, kwargs)
    later = later_call(net, asked, variables, args, kwargs, one_key()) if only else None
    ran = run(net, asked, variables, creating=True, mutable=True, later=later)
    found = ran.collections({})
    return {name: flatten_dict(found.get(name, {})) for name in _NEW}


def _moved(net, variables, args, kwargs, only):
    """The statistics behind the batch by path, and whether all tensors are finite."""
    moved, finite = observe(net, variables, args, kwargs)
    moved = flatten_dict(moved)
    if only:
        more, also = observe(net, variables, *net.as_training(args, kwargs))
        more = flatten_dict(more)
        moved |= {path: x for path, x in more.items() if "/".join(path[:-1]) in only}
        finite &= also
    return moved, finite


def _structure(net, floats, args, kwargs, only):
    """The quantizers' leaves as shapes; raises for a rule that does nothing."""
    return jit_arrays(_made, floats, args, kwargs, static=(net, only), over=jax.eval_shape)


def _shapes(flat):
    return {name: {path: x.shape for path, x in flat[name].items()} for name in _NEW}


def _sites(flat):
    return {path[:-1] for name in _NEW for path in flat[name]}


def _whole_sites(kept, want):
    """The leaves of the sites that miss none."""
    partly = {p[:-1] for name in _NEW for p in want[name] if p not in kept[name]}
    return {n: {p: x for p, x in kept[n].items() if p[:-1] not in partly} for n in _NEW}
