"""`Function(fn, rules)`: a plain function of parameters and data, quantized."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn

from bitjax.checks import TEXT, checked, either, integer, several
from bitjax.frameworks.arguments import as_training, split_train
from bitjax.frameworks.call import Asked, Given, Variables, run
from bitjax.frameworks.kinds import WRAPPED, advice, holds_parameters, is_nnx, is_wrapped
from bitjax.frameworks.later import later_call
from bitjax.program.trace import Traced
from bitjax.rules import Rules, check_types
from bitjax.variables import QUANT

_TRACED = Traced()


@checked(neutral=several(either(integer(0), TEXT)), **WRAPPED)
@dataclass(frozen=True)
class Function:
    """Wraps `fn(params, *args, **kwargs)`: plain JAX, Equinox, Haiku.

    Sites are named by the parameters' paths, as in `bitjax.Quantized`: `mlp/linear_0/w` gives
    `mlp/linear_0/kernel` and `mlp/linear_0/input`.

    Attributes:
      fn: the function; its first argument is a tree of parameters.
      rules: the rules, from `bitjax.rule`; the first one that matches a site decides.
      neutral: arguments that are neither parameters nor data, such as Haiku's state: positions
        behind the parameters, counted from 0, or names.
      axis_name: the device axis over which statistics are merged.
      sums: whether the addends of residual sums are sites too.
      calls: `shared` gives all calls of a layer one input site, `each` gives every call its own:
        `layer/input`, `layer/input@2`. A rule for `layer/input` names all of them, and a rule
        before it can name one.

    Raises:
      TypeError: `fn` is no function of parameters; the message says what to call.
      ValueError: at initialisation, a rule does nothing; later, a site has no variables.

    Example:
      >>> import jax.numpy as jnp
      >>> import bitjax as bj
      >>> net = Function(lambda params, x: x @ params["w"], [bj.rule(".*", bj.lsq(bits=4))])
      >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((1, 3))
      >>> state = net.init(params, x)
      >>> out, state = net.apply(params, state, x)
      >>> sorted(state["quant"]), out.shape
      (['input', 'kernel'], (1, 2))
    """

    fn: Callable[..., Any]
    rules: Rules = ()
    neutral: tuple[int | str, ...] = ()
    axis_name: str | None = None
    sums: bool = False
    calls: str = "shared"

    def __post_init__(self):
        fn = self.fn
        module = isinstance(fn, type | nn.Module) or is_nnx(fn) or is_wrapped(fn)
        if not callable(fn) or module or holds_parameters(fn):
            raise TypeError(f"bitjax.Function takes a function of parameters, got {advice(fn)}.")
        check_types(self.rules)

    def init(self, params: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The quantizers' state, `quant` and `quant_stats`, which starts from this batch."""
        model = self.with_rules(self.rules)
        variables = {"params": params}
        asked = model.ask(variables, args, kwargs)
        later = later_call(model, asked, variables, args, kwargs, {})
        ran = run(model, asked, variables, creating=True, mutable=True, later=later)
        return ran.collections({})

    def apply(
        self,
        params: Any,
        state: Mapping[str, Any],
        *args: Any,
        train: bool | None = None,
        update: bool = False,
        key: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """The function's output, and the state; its statistics move where `update` is set.

        Args:
          params: the parameters.
          state: what `init` or a call gave.
          *args: further arguments of the function.
          train: whether batches' own statistics quantize; passed on if the function takes it.
            None reads it from a `train`, `training` or `deterministic` of the function.
          update: whether statistics move.
          key: a PRNG key for quantizers that draw in training.
          **kwargs: keyword arguments of the function.
        """
        variables = {"params": params, **state}
        kwargs = kwargs if train is None else {**kwargs, "train": train}
        asked = self.ask(variables, args, kwargs, rngs={QUANT: key})
        ran = run(self, asked, variables, mutable=update)
        return ran.out, {**state, **ran.collections(variables)}

    def with_rules(self, rules: Rules, axis_name: str | None = None) -> "Function":
        """The function under other rules."""
        return replace(self, rules=tuple(rules), axis_name=axis_name)

    def clone(self, **changes: Any) -> "Function":
        """The function with other settings."""
        return replace(self, **changes)

    def as_training(
        self, args: tuple, kwargs: Mapping[str, Any], method: Any = None
    ) -> Given | None:
        """The arguments of the training call; None if these are, or if there is no other call."""
        del method  # a function has no other methods
        # The parameters come first.
        given = as_training(self.fn, (None, *args), kwargs)
        return given and (given[0][1:], given[1])

    def ask(
        self,
        variables: Variables,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        rngs: Any = None,
        mutable: Any = (),
        method: Any = None,
    ) -> Asked:
        """The program of a call."""
        del mutable, method  # a plain function has no collections and no methods
        fn, neutral = self.fn, self.neutral
        if "params" not in variables:
            raise ValueError(
                "the variables of a function are {'params': its parameters, ...}, got the keys "
                f"{', '.join(map(repr, variables)) or 'of an empty dict'}."
            )
        first = variables["params"]
        given, train = split_train(fn, (first, *args), kwargs)
        apart = (
            tuple(x if i in neutral else None for i, x in enumerate(args)),
            {name: x for name, x in given.items() if name in neutral},
        )
        data = (
            tuple(None if i in neutral else x for i, x in enumerate(args)),
            {name: x for name, x in given.items() if name not in neutral},
        )

        def function(params, apart, data):
            both = zip(apart[0], data[0], strict=True)
            args = [a if i in neutral else b for i, (a, b) in enumerate(both)]
            return fn(params, *args, **data[1], **apart[1]), {}

        key = (fn, neutral, self.sums, self.calls)
        call = _TRACED(function, key, first, apart, data, sums=self.sums, calls=self.calls)
        return Asked(call, train, (rngs or {}).get(QUANT))
