"""Runs a work, or several as rows of one program; see `loop` for how."""

from collections.abc import Mapping
from pathlib import Path

from bitjax.training.group import Group, check_rows
from bitjax.training.keeper import Keeper
from bitjax.training.loop import Loop, Outcome
from bitjax.training.preemption import Preemption
from bitjax.training.progress import Progress
from bitjax.training.rows import placement_of_rows
from bitjax.training.work import Work


def run(
    work: Work,
    folder: Path | None = None,
    *,
    show: bool = True,
    preemption: Preemption | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Runs what is left of a run.

    Args:
      work: the run, from `make_work`.
      folder: an opened run folder; None keeps nothing on disk.
      show: whether progress is shown.
      preemption: asks the run to save and stop.
      progress: the bar or log that shows progress; a new one unless given.

    Raises:
      NonFiniteError: a loss or gradient was not finite.
      Stopped: `preemption` asked for it; the state is saved.
      SaveError: the last checkpoint could not be written.
      ValueError: a stage's inputs are wrong, see its method.

    Example:
      >>> import bitjax as bj
      >>> from bitjax.data import load
      >>> from bitjax.methods import uniform
      >>> from bitjax.models import MLP
      >>> from bitjax.training.work import make_work
      >>> rules = [bj.rule(".*", bj.uniform(bits=8))]
      >>> work = make_work(uniform(rules), MLP(features=(8,)), load("digits"))
      >>> result, variables = run(work, show=False)
      >>> result["bits"]["all"]["integer"], float(bj.bits_of(variables)["head/kernel"])
      (8.0, 8.0)
    """
    loop = Loop({"": work}, {"": Keeper(work, folder)}, None, preemption, show)
    return loop.run(progress)[""]


def run_rows(
    works: Mapping[str, Work],
    folders: Mapping[str, Path] | None = None,
    group_folder: Path | None = None,
    *,
    show: bool = True,
    preemption: Preemption | None = None,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Runs what is left of several runs as rows of one program on one device.

    A step of the group is `jax.vmap` of the step of a run. A row whose loss is not finite, or whose
    preparation is refused, fails by itself, and the others go on. A group that is resumed prepares
    the rows of a stage anew, for units of several rows have no common order.

    Args:
      works: the runs by name. They are equal in everything but seed, start and what their methods
        keep in their states or do on the host, see `rows.programs`; all use the first one's data.
      folders: opened run folders by name; each gets metrics, bits and a result.
      group_folder: folder of the group's checkpoints; None keeps none.
      show: whether progress is shown.
      preemption: asks the group to save and stop.

    Returns:
      The outcomes of the rows that finished, and why the others failed.

    Raises:
      Stopped: `preemption` asked for it; the state is saved.
      ValueError: the runs cannot be rows of one program, or the folder holds other runs.
    """
    check_rows(works)
    first, place = next(iter(works.values())), placement_of_rows()
    works = {
        name: work._replace(
            dataset=first.dataset, place=place, facts={**work.facts, "vectorized": len(works)}
        )
        for name, work in works.items()
    }
    keepers = {name: Keeper(work, (folders or {}).get(name)) for name, work in works.items()}
    group = Group(works, keepers, group_folder)
    outcomes = Loop(works, keepers, group, preemption, show).run()
    return outcomes, group.failed
