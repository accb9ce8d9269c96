"""Kernels solved layer by layer from a few batches, without training."""

from collections.abc import Callable, Iterator

from bitjax.checks import SWITCH, checked
from bitjax.costs.site import Costs
from bitjax.frameworks.targets import is_stored
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.methods.recipe import BATCHES
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.two_step.fits import SOLVE, SolveOptions
from bitjax.two_step.solve import solve_each


@checked(rules=RULES, calibration_batches=BATCHES, augment=SWITCH, **SOLVE)
def solved(
    rules: Rules,
    *,
    calibration_batches: int = 12,
    augment: bool = False,
    target: str = "sum",
    start: str = "best",
    damping: float = 0.01,
    correction: float = 1.0,
    asymmetric: bool = True,
    float_inputs: bool = False,
    positions: int = 512,
    ridge: float = 0.3,
    joint: bool = True,
    pair_moves: bool = False,
    starts: int = 1,
    strengths: tuple[float, ...] = (1.0,),
    iterations: int = 5,
    max_sweeps: int = 30,
    seed: int = 0,
) -> Method:
    """Gives kernels low-bit codes with which each layer does what its float kernel does.

    One stage, `solve`: layer by layer in forward order, without gradients, each kept as it is done,
    see `bitjax.solve_layers`. Positions count as the task says: padding does not. GPTQ itself is
    `start="gptq"`, `max_sweeps=0`, `correction=0`, `ridge=0`; AdaRound is `start="adaround"`,
    `max_sweeps=0`, `target="output"`.

    Args:
      rules: rules that give kernels to be solved `ternary`, `binary` or `low_bit` quantizers with
        fit="stored"; inputs have any quantizer or none, other kernels keep theirs.
      calibration_batches: training batches that layers are solved from.
      augment: whether those batches are augmented.
      target: `sum` for sums and outputs, `output` for outputs alone; `codes` also for the codes of
        the quantizer behind a layer, where all positions count alike.
      start: codes that the descent starts from: `rounded`, `gptq`, `adaround`, or the better of the
        first two, `best`, or of all three, `all`.
      damping: GPTQ's, as a share of the Gram matrix's mean diagonal.
      correction: share of what is lost in front of a layer that its target makes up for.
      asymmetric: whether a layer's inputs come from the network as far as it is solved.
      float_inputs: whether the float network computes its targets from float inputs.
      positions: positions taken of an example; more than it has takes all.
      ridge: strength of the pull towards the float filters, see `solvers.fit_codes`.
      joint: whether each code is tried at its own best scale; else there is one scale a sweep.
      pair_moves: whether two codes may change at once, too.
      starts: number of starts of the descent.
      strengths: strengths lambda of the splitting, for the target `codes`.
      iterations: iterations of the splitting for each strength.
      max_sweeps: largest number of sweeps of one descent; 0 takes the start as it is.
      seed: the seed of positions and starts.

    Raises:
      ValueError: no rule stores a kernel's scale, or a setting is out of its range.

    Example:
      >>> import bitjax as bj
      >>> rules = [bj.rule(".*/kernel", bj.low_bit(bits=4, fit="stored"))]
      >>> [stage.name for stage in solved(rules).stages]
      ['solve']
    """
    check_rules(rules, "solved")
    options = SolveOptions(
        target=target,
        start=start,
        damping=damping,
        correction=correction,
        asymmetric=asymmetric,
        float_inputs=float_inputs,
        positions=positions,
        ridge=ridge,
        joint=joint,
        pair_moves=pair_moves,
        starts=starts,
        strengths=tuple(strengths),
        iterations=iterations,
        max_sweeps=max_sweeps,
        seed=seed,
    )
    check = stored_check(rules, "solved")
    solve = solving(options, calibration_batches, augment)
    return Method("solved", (Stage("solve", rules, prepare=solve, check=check),))


def check_rules(rules: Rules, method: str) -> None:
    """Refuses rules that store no kernel's scale."""
    if not any(is_stored(r.quantizer) for r in rules):
        raise ValueError(
            f"{method} has no kernel to solve: give one a ternary, binary or low_bit quantizer "
            "with fit='stored'."
        )


def stored_check(rules: Rules, method: str) -> Callable[[Costs], None]:
    """The check that the rules give a kernel to solve."""

    def check(costs):
        kernels = [site for site, entry in costs.items() if entry.role == "kernel"]
        if not any(is_stored(quantizer_of(rules, site)) for site in kernels):
            raise ValueError(
                f"{method} has no kernel to solve: no rule with a ternary, binary or low_bit "
                f"quantizer of fit='stored' matches one. Kernels: {', '.join(kernels)}."
            )

    return check


def solving(options: SolveOptions, batches: int, augment: bool):
    """The preparation that solves layer by layer, each kept as it is done."""

    def solve(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        # Positions of no weight are left out, which a fit to the codes behind a layer cannot do.
        found = context.weights if options.target != "codes" else None
        steps = solve_each(
            context.model,
            variables,
            lambda: context.batches(batches, augment),
            weights=None if found is None else (lambda: found(batches, augment)),
            settings=options,
            # A stage before this one may have fitted the other sites; the first one has none.
            teacher={**variables, **context.previous},
            start=start,
        )
        for solution, report in steps:
            behind = "" if report.mismatch is None else f", codes {report.mismatch:.1%} off"
            context.log(
                f"{report.layer}: error {report.error:.1%}{behind}, "
                f"{report.sparsity:.0%} zeros, {report.patches:,} patches"
            )
            yield solution

    return solve
