"""What a program is read into: kinds of arrays, sites, operands and products."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bitjax.quantizers.base import Axes

# Parts of a parameter's path that name no layer of their own: `conv1/kernel` belongs to `conv1`.
KERNEL_NAMES = ("kernel", "weight", "w")
TABLE_NAME = "embedding"
LEAF_NAMES = (*KERNEL_NAMES, TABLE_NAME)


UNKNOWN = -1


class Leaf(NamedTuple):
    """One array of a function's variables."""

    path: str  # `stage1/conv1/kernel`
    size: int


class Kind(NamedTuple):
    """What an array of the program depends on."""

    what: str  # `param`, `neutral` (rng keys, other variables, constants) or `data`
    leaves: tuple[Leaf, ...] = ()  # the parameters it is computed from; empty for data
    steps: tuple["Step", ...] = ()  # the scans of which each step has its own slice of it
    masked: bool = False  # whether an array that is no parameter may have set entries to zero
    cache: str = ""  # of data, the site of the cache whose elements it has


NEUTRAL, DATA = Kind("neutral"), Kind("data")


class Step(NamedTuple):
    """A scan that stacks variables: one slice for each of its steps."""

    scan: int  # identity of the scan
    length: int  # UNKNOWN of a loop that runs until something holds


class Site(NamedTuple):
    """One tensor that a product reads and that may be quantized."""

    name: str  # `layer/role`
    layer: str
    # `kernel`, `input`; of a product of two data arrays and of a sum `left`, `right`; of what is
    # marked to enter a cache `cache`, and such a site is named without its role
    role: str
    shape: tuple[int, ...]  # where the first product reads it, without the axes of `steps`
    dtype: Any
    axes: Axes
    steps: tuple[Step, ...] = ()  # outermost first: axes that its variables have in front
    masked: bool = False  # whether zeros of a mask are in it

    @property
    def lengths(self) -> tuple[int, ...]:
        """The leading axes of its variables."""
        return tuple(step.length for step in self.steps)


class Operand(NamedTuple):
    """How a product comes by one of its tensors."""

    role: str
    origins: Mapping[int, Site]  # where it is quantized: numbers of arrays in the body, and sites
    moves: tuple[Any, ...]  # operations to replay on the quantized origins, in order
    elements: int  # of the first origin, in one run of the body

    @property
    def site(self) -> Site:
        """The operand's site; of a concatenated kernel the first of its sites."""
        return next(iter(self.origins.values()))


NOTHING_HELD: Mapping[int, Operand] = MappingProxyType({})


class Product(NamedTuple):
    """One operation with sites."""

    kind: str  # `dot`, `conv`, `lookup`, `sum`, or the mark of a `cache`
    layer: str
    operands: Mapping[int, Operand]  # by position; an operand that is no site is not there
    filters: int  # output channels
    macs: int  # of one run of the body, all examples together
    times: int  # how often the body runs
    output: int  # number of the array that the layer gives: behind the bias
    scope: str  # the module path in which it is computed
    # By position what it reads of a cache: quantized where it entered, so that it is no site here.
    held: Mapping[int, Operand] = NOTHING_HELD


class Unread(NamedTuple):
    """Work that no site reaches."""

    scope: str  # where it is computed
    why: str  # the primitive, or `constant`, `derivative`
    macs: int  # of all examples together
    layers: tuple[str, ...] = ()  # of the parameters that it takes
