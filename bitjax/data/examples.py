"""What every data set is to the pipeline: named, counted, and giving examples by their index."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import numpy as np

Batch = dict[str, np.ndarray]


@runtime_checkable
class DatasetLike(Protocol):
    """A value that goes where a data set goes; what it holds is its own affair.

    Attributes:
      name: The data set's name.
      eval_split: Name of the evaluation split: 'test', 'validation', ...
      origin: What identifies the files that the examples are read from; '' where nothing does.
      task: What it is for, unless a run says otherwise: 'classification' or 'next_token'.
      num_train: Number of training examples, the same in every epoch.
      num_eval: Number of evaluation examples.
      threads: In how many threads examples are read one by one; 0 reads a batch at once.
      fixed: Whether a training example is the same in every epoch, and may stay on a device.
      about: What a reader of a result should know of the data, as JSON.
    """

    if TYPE_CHECKING:  # whether a value is one must not compute its properties

        @property
        def name(self) -> str: ...

        @property
        def eval_split(self) -> str: ...

        @property
        def origin(self) -> str: ...

        @property
        def task(self) -> str: ...

        @property
        def num_train(self) -> int: ...

        @property
        def num_eval(self) -> int: ...

        @property
        def threads(self) -> int: ...

        @property
        def fixed(self) -> bool: ...

        @property
        def about(self) -> dict[str, Any]: ...

    def specs(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of `count` examples, the mask left out."""
        ...

    def train_examples(
        self, indices: np.ndarray, *, seed: int, positions: np.ndarray, augment: bool
    ) -> Batch:
        """The training examples of some indices.

        They stand at these `positions` of the endless stream of epochs that `seed` orders: what is
        drawn anew in every epoch follows from both.
        """
        ...

    def eval_examples(self, indices: np.ndarray) -> Batch:
        """The evaluation examples of some indices; of none too."""
        ...

    def eval_sample(self, count: int) -> Batch:
        """The first `count` evaluation examples, or all if there are fewer."""
        ...

    def identity(self) -> dict[str, Any]:
        """What is the same as long as the data are, as JSON; counts of examples left out."""
        ...
