"""`Quantized(model, rules)`: any Linen model, with the tensors that the rules select quantized."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
from flax.core.scope import LazyRng, in_filter
from flax.linen import module as flax_module

from bitjax.checks import checked
from bitjax.frameworks.arguments import as_training, split_train
from bitjax.frameworks.call import Asked, Given, Variables, run
from bitjax.frameworks.kinds import WRAPPED, advice
from bitjax.frameworks.later import later_call
from bitjax.frameworks.norms import synchronised
from bitjax.program.kept import Same
from bitjax.program.trace import Traced
from bitjax.quantizers.base import Quantizer
from bitjax.rules import Rules, check_types
from bitjax.variables import QUANT, STATS

_TRACED = Traced()
_OWN = (QUANT, STATS)
# Collections that hold data; the others (statistics, masks, tables) belong to the model.
_OF_DATA = ("cache",)
_CALLS = "bitjax calls"  # beside the counts of a scope's draws


@checked(**WRAPPED)
class Quantized(nn.Module):
    """Wraps a Linen model; tensors that `rules` select are quantized where products read them.

    The model is traced once per shape. Operands of its products are the sites: a tensor that
    depends on parameters alone is a kernel, named by its parameter, the other one the layer's
    input; attention's products are `<module>/product0/left` and `right`. Nothing of the model is
    rewritten, and its layers need not be Flax's.

    The `params` tree is the model's own, so float checkpoints load unchanged. Quantizers keep
    learned variables in the collection `quant`, observed ones in `quant_stats`, by layers' paths:
    `quant/stage1/block1/conv1/kernel/bits`. Initialise with a real batch, because learned ranges
    start from it. `train` is read from the call (`train=`, `training=` or `deterministic=`, or
    their defaults); where the model does not accept `train`, the argument that it has for it is
    set, and `train` removed. Statistics move only where `quant_stats` is mutable. Outside training,
    the moving averages quantize. A layer that is called several times has one range, which covers
    all of its calls.

    Sites that only the training call has, as an auxiliary classifier's, get their variables from
    `bitjax.attach` beside float parameters that were made with `train=True`.

    Attributes:
      model: any Linen module.
      rules: the rules, from `bitjax.rule`. The first one that matches a site decides; a site that
        none matches stays float.
      axis_name: the device axis of `pmap` or `shard_map` over which the statistics of quantizers
        and of batch normalisations are merged.
      sums: whether the addends of residual sums are sites too: `<module>/sum0/left` and `right`.
      calls: `shared` gives all calls of a layer one input site, `each` gives every call its own:
        `layer/input`, `layer/input@2`. A rule for `layer/input` names all of them, and a rule
        before it can name one.

    Raises:
      TypeError: the model is no Linen module; the message says what to call.
      ValueError: at initialisation, a rule does nothing or names work that cannot be quantized;
        later, a site has no variables.

    Example:
      >>> import bitjax as bj, jax, jax.numpy as jnp
      >>> model = Quantized(nn.Dense(2), [bj.rule(".*", bj.uniform(bits=8))])
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> sorted(variables), float(variables["quant"]["kernel"]["bits"])
      (['params', 'quant', 'quant_stats'], 8.0)
    """

    model: nn.Module
    rules: Rules = ()
    axis_name: str | None = None
    sums: bool = False
    calls: str = "shared"

    def __post_init__(self):
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"bitjax.Quantized takes a Linen module, got {advice(self.model)}.")
        check_types(self.rules)
        super().__post_init__()

    # The model runs unbound, as a root, on this module's variables. So it draws and names as it
    # does alone, and a submodule of it may be called `model`.

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The model's variables, and those of its quantizers, which start from this batch."""
        return self.init_with_output(rngs, *args, method=method, **kwargs)[1]

    @nn.nowrap
    def init_with_output(self, rngs, *args, method=None, **kwargs):
        """As `init`, with the output in front."""
        rngs = _streams(rngs)
        given, _ = split_train(_called(self.model, method), args, kwargs)
        variables = self.model.init(rngs, *args, method=_method(method), **given)
        model = self.clone(axis_name=None)
        asked = model.ask(variables, args, kwargs, rngs=rngs, mutable=True, method=method)
        later = later_call(model, asked, variables, args, kwargs, rngs, method=method)
        ran = run(model, asked, variables, creating=True, mutable=True, later=later)
        return ran.out, {**variables, **ran.collections({})}

    @nn.nowrap
    def apply(
        self,
        variables: Variables,
        *args: Any,
        rngs: Any = None,
        method: Any = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """The model's output, and the changed collections where any are `mutable`, as in Flax."""
        asked = self.ask(variables, args, kwargs, rngs=rngs, mutable=mutable, method=method)
        creating, keeps = (in_filter(mutable, name) for name in _OWN)
        ran = run(self, asked, variables, creating=creating, mutable=keeps)
        if mutable is False:
            return ran.out
        own = ran.collections(variables)
        return ran.out, {**ran.changed, **{n: own[n] for n in own if in_filter(mutable, n)}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Inside another module: on the variables and random streams of this module's scope."""
        scope = self.scope
        assert scope is not None, "a module that is called is bound"
        # The model is a root at every call, so that its own counts of draws begin again.
        before = scope.rng_counters.get(_CALLS, 0)
        scope.rng_counters[_CALLS] = before + 1
        rngs: dict[str, Any] = {
            name: LazyRng.create(rng, before) if before else rng for name, rng in scope.rngs.items()
        }
        free = self.clone(parent=None, name=None)
        if self.is_initializing():
            out, changed = free.init_with_output(rngs, *args, **kwargs)
        else:
            names = [*self.variables, *_OWN, "batch_stats", "cache", "intermediates"]
            mutable = [n for n in dict.fromkeys(names) if scope.is_mutable_collection(n)]
            out, changed = free.apply(
                dict(self.variables), *args, rngs=rngs, mutable=mutable, **kwargs
            )
        for collection, tree in changed.items():
            for name, value in tree.items():
                scope.put_variable(collection, name, value)
        return out

    @nn.nowrap
    def with_rules(self, rules: Rules, axis_name: str | None = None) -> "Quantized":
        """The model under other rules."""
        return Quantized(self.model, tuple(rules), axis_name, sums=self.sums, calls=self.calls)

    @nn.nowrap
    def as_training(
        self, args: tuple, kwargs: Mapping[str, Any], method: Any = None
    ) -> Given | None:
        """The arguments of the training call; None if these are, or if there is no other call."""
        return as_training(_called(self.model, method), args, kwargs)

    @nn.nowrap
    def ask(
        self,
        variables: Variables,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        rngs: Any = None,
        mutable: Any = (),
        method: Any = None,
        around: Callable[..., Any] | None = None,
    ) -> Asked:
        """The program of a call; `around` intercepts the methods of the model's modules."""
        # A field that is bound would bring its scope along.
        model = self.model.clone(parent=None, name=None)
        kwargs = dict(kwargs)
        method = kwargs.pop("method", method)  # of the tools, which hand keywords on
        given, train = split_train(_called(model, method), args, kwargs)
        for name, tree in variables.items():
            if not isinstance(tree, Mapping):
                raise TypeError(
                    f"`variables` must map collections to trees, as model.init gives them, got a "
                    f"{type(tree).__name__} for {name!r}."
                )
        own = nn.meta.unbox(dict(variables))
        params = own.pop("params", {})
        data = {name: own.pop(name) for name in _OF_DATA if name in own}
        neutral = {name: tree for name, tree in own.items() if name not in _OWN}
        streams = {n: lazy for n, lazy in _streams(rngs).items() if n != QUANT}
        suffixes = {n: lazy.suffix for n, lazy in streams.items() if isinstance(lazy, LazyRng)}
        keys = {n: getattr(lazy, "rng", lazy) for n, lazy in streams.items()}
        inner = _without_own(mutable)
        axis_name = self.axis_name

        def function(params, neutral, data):
            (others, keys), (more, args, kwargs) = neutral, data
            rngs: Any = {
                n: LazyRng(k, suffixes[n]) if n in suffixes else k for n, k in keys.items()
            }
            with nn.intercept_methods(around or synchronised(axis_name)):
                found = model.apply(
                    {"params": params, **others, **more}, *args,
                    rngs=rngs, mutable=inner, method=_method(method), **kwargs,
                )  # fmt: skip
            return found if inner is not False else (found, {})

        key = (hashable(model), method, repr(inner), tuple(suffixes.items()), axis_name, around)
        call = _TRACED(
            function, (*key, intercepting(), self.sums, self.calls), params, (neutral, keys),
            (data, args, given), root=1, sums=self.sums, calls=self.calls,
        )  # fmt: skip
        return Asked(call, train, _quant_key(rngs))


def hashable(value):
    """A model as part of a key: by its fields, with each quantizer by identity."""
    if isinstance(value, partial):
        return partial, *map(hashable, (value.func, value.args, value.keywords))
    try:
        hash(value)
    except TypeError:
        if isinstance(value, Quantizer):
            return Same(value)
        # A bound module stays without a hash: it holds variables, and its parent holds it.
        bound = isinstance(value, nn.Module) and (value.scope or value.parent is not None)
        if dataclasses.is_dataclass(value) and not bound:
            fields = (getattr(value, field.name, None) for field in dataclasses.fields(value))
            return type(value), *map(hashable, fields)
        if isinstance(value, tuple | list):
            return type(value), *map(hashable, value)
        if isinstance(value, Mapping):
            return type(value), *((name, hashable(x)) for name, x in value.items())
    return value


def intercepting():
    """The caller's own interceptors, `nn.intercept_methods`, which a trace takes in."""
    return tuple(getattr(flax_module, "_global_interceptor_stack", ()))


def _streams(rngs):
    """Random streams by name; one key alone is that of `params`."""
    if rngs is None:
        return {}
    return dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}


def _quant_key(rngs):
    """The key of quantizers that draw."""
    stream = _streams(rngs).get(QUANT)
    return stream.as_jax_rng() if isinstance(stream, LazyRng) else stream


def _without_own(mutable):
    """The collections that may change, without those of the quantizers."""
    if isinstance(mutable, str):
        mutable = [mutable]
    if not mutable:  # an empty list, which Flax takes as False, would be another program
        return False
    if isinstance(mutable, bool) or not isinstance(mutable, list | tuple | set | frozenset):
        return mutable
    return [name for name in mutable if name not in _OWN] or False


def _method(method):
    """The model's own method: of the wrapper's, `__call__` is the only one it has too."""
    return None if method in (None, "__call__", Quantized.__call__) else method


def _called(model, method):
    """The function whose arguments a call gives."""
    # The arguments of nn.Sequential are those of its first layer.
    while type(model).__call__ is nn.Sequential.__call__ and model.layers:
        model = model.layers[0]
    if _method(method) is not None:
        return getattr(model, method) if isinstance(method, str) else method
    return model.__call__ if isinstance(model, nn.Module) else model
