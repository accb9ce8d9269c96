"""The one loop: takes runs through their stages, each one prepared, trained and evaluated.

It checkpoints at each unit of preparation, inside training and between stages, and resumes at any
of them with the same result, bit for bit on one machine. Several runs can be rows of one program:
the loop is the same, and what it does on the host it does row by row.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.training.ending import Ending, Figures, ending
from bitjax.training.feed import feed, resident
from bitjax.training.finite import NonFiniteError, check_finite
from bitjax.training.group import Group
from bitjax.training.hosts import is_first
from bitjax.training.keeper import Keeper, Position
from bitjax.training.preemption import Preemption, Stopped
from bitjax.training.progress import Progress
from bitjax.training.state import TrainState, variables_of, with_variables
from bitjax.training.task import ScoreError
from bitjax.training.work import Variables, Work


class Outcome(NamedTuple):
    """What a run ended with.

    Attributes:
      result: what `result.json` holds.
      variables: the model's, under the last stage's rules.
    """

    result: dict[str, Any]
    variables: dict[str, Any]


class Loop:
    """Runs that share a program: one, or the rows of a group."""

    def __init__(
        self,
        works: Mapping[str, Work],
        keepers: Mapping[str, Keeper],
        group: Group | None,
        preemption: Preemption | None,
        show: bool,
    ):
        self.works, self.keepers, self.group = works, keepers, group
        self.saver = group or keepers[""]
        self.first = next(iter(works.values()))
        self.place, self.stages = self.first.place, self.first.method.stages
        self.preemption = preemption or Preemption()  # a signal's handler may ask it to stop
        self.show = show and is_first()
        self.failed = group.failed if group is not None else {}
        self.ends: dict[str, Ending] = {}
        self.figures = Figures()

    def run(self, progress: Progress | None = None) -> dict[str, Outcome]:
        """Runs what is left; the outcomes of the runs that did not fail."""
        begun = False
        try:
            position, names, saved = self._restore()
            begun = position.stage < len(self.stages)
            with progress or Progress(enabled=self.show) as progress:
                variables = self._run_stages(position, names, saved, progress)
            outcomes = {}
            for name, final in variables.items():
                # What is finished is left as it is, and so are the moments in its files.
                if not begun and (result := self.keepers[name].kept()) is not None:
                    outcomes[name] = Outcome(result, dict(final))
                    continue
                if self.group is not None:
                    # So that the row's folder can start another run, or be exported.
                    self.keepers[name].save(Position(len(self.stages)), {"variables": final})
                end = self.ends.get(name) or ending(self.works[name], final)
                outcomes[name] = Outcome(self.keepers[name].finish(end), dict(final))
            return outcomes
        except BaseException as error:  # also of Ctrl-C: each row's folder says how it ended
            for name in [name for name in self.works if name not in self.failed]:
                if begun:  # else the folder may be another run's, or hold a finished one
                    self.keepers[name].fail(error)
            raise
        finally:
            for keeper in self.keepers.values():
                keeper.close()
            if self.group is not None:
                self.group.close()

    def _run_stages(
        self, position: Position, names: list[str], saved: Variables, progress: Progress
    ) -> dict[str, Variables]:
        variables = {name: self.works[name].start for name in names}
        if "variables" in saved:
            variables = self._rows(names, saved["variables"])
        for index, stage in enumerate(self.stages):
            if index < position.stage:
                continue
            here = position if position.stage == index else Position(index)
            for keeper in self.keepers.values():
                keeper.enter_stage(here)
            if here.phase == "train":
                state = saved["state"]
            else:
                resumed = here.phase == "prepare"
                previous = self._rows(names, saved["previous"]) if resumed else variables
                variables = self._prepare(here, previous, variables)
                names = list(variables)
                if not names:
                    return {}
                state = self._first_state(index, variables)
            evaluate = self.first.evaluator(self.first.wrap(stage))
            state = self._train(index, state, names, evaluate, progress)
            variables = self._end_stage(index, state, names, evaluate)
            if not variables:
                return {}
            names = list(variables)
            tree = variables[""] if self.group is None else self.place.join([*variables.values()])
            self._save(Position(index + 1), {"variables": tree}, names)
            if index + 1 < len(self.stages):
                self._stop_if_asked(index + 1)
        return variables

    def _prepare(
        self, here: Position, previous: Mapping[str, Variables], variables: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Each run's variables at the start of a stage's training; refused rows are left out."""
        prepared = {}
        for name, before in previous.items():
            try:
                found = variables[name]
                if here.phase == "enter":
                    work = self.works[name]
                    found = work.enter(work.method.stages[here.stage], before)
                prepared[name] = self._prepare_units(here, name, before, found)
            except ValueError as error:
                self._fail(name, error)
        return prepared

    def _prepare_units(
        self, here: Position, name: str, before: Variables, found: Variables
    ) -> Variables:
        work, index = self.works[name], here.stage
        prepare = work.method.stages[index].prepare
        if prepare is None:
            return found
        units = prepare(work.context(index, before, self._say), found, here.unit)
        for unit, found in enumerate(units, here.unit + 1):
            if self.group is None:
                tree = {"variables": found, "previous": before}
                self._save(Position(index, "prepare", unit), tree, [name])
            self._stop_if_asked(index)
        return found

    def _first_state(self, index: int, variables: Mapping[str, Variables]) -> TrainState:
        states = [self.works[name].first_state(index, found) for name, found in variables.items()]
        state = self.place.join(states)
        if self.group is not None and self.stages[index].prepare is not None:
            self._save(Position(index, "train", 0), {"state": state}, list(variables))
        return state

    def _train(
        self,
        index: int,
        state: TrainState,
        names: list[str],
        evaluate: Callable,
        progress: Progress,
    ) -> TrainState:
        stage, place, settings = self.stages[index], self.place, self.first.settings
        done, offset = (int(np.ravel(n)[0]) for n in (state.step, state.offset))
        if done >= stage.steps:
            return state
        scanned = settings.steps_per_dispatch > 1
        step = place.train(self.first.train_step(index), scanned=scanned)
        state = place.put_state(state)
        data = resident(self.first.dataset, place, settings.device_data_mb)
        title = stage.name if self.group is None else f"{stage.name} x {len(names)}"
        task = self.first.task
        progress.stage(title, stage.steps, done=done, forms={task.score: task.form})
        began = time.monotonic()
        steps = range(offset + done, offset + stage.steps)
        seeds = [self.works[name].settings.seed for name in names] if self.group else ()
        batches = feed(self.first.dataset, settings, place, steps, indices=bool(data), seeds=seeds)
        with contextlib.closing(batches):
            for count, batch in batches:
                state, metrics = step(state, batch, data)
                done += count
                progress.update(done, **metrics)
                last = done == stage.steps
                stopping = self.preemption.reached(self.saver.save_seconds)
                save = not last and (done % settings.checkpoint_every == 0 or stopping)
                log = last or done % settings.log_every == 0
                if log or save:
                    self._check_finite(index, state, names)
                if log:
                    seconds = round(time.monotonic() - began, 3)
                    self._log(names, offset + done, stage.name, metrics, seconds)
                if stage.every is not None and done % stage.every[0] == 0:
                    state = self._call_on_host(index, state, names)
                if settings.eval_every and done % settings.eval_every == 0 and not last:
                    self._evaluate(index, offset + done, state, names, evaluate)
                if save:
                    self._save(Position(index, "train", done), {"state": place.local(state)}, names)
                if stopping and not last:  # a stage that is done is evaluated and saved first
                    raise self._stopped(offset + done)
                if self.failed.keys() >= set(names):
                    break
        return place.local(state)

    def _log(
        self, names: list[str], step: int, stage: str, metrics: Variables, seconds: float
    ) -> None:
        for name, row in self._rows(names, jax.device_get(metrics)).items():
            if name not in self.failed:
                values = {key: float(value) for key, value in row.items()}
                self.keepers[name].row(step, {"stage": stage, **values, "seconds": seconds})

    def _call_on_host(self, index: int, state: TrainState, names: list[str]) -> TrainState:
        """The state with each run's variables as the stage's function on the host has them."""
        rows = []
        for name, row in self._rows(names, self.place.local(state)).items():
            every = self.works[name].method.stages[index].every
            if every is not None and name not in self.failed:
                # The preceding variables are those of this stage: no earlier form is read.
                before = variables_of(row)
                context = self.works[name].context(index, before, self._say)
                row = with_variables(row, every[1](context, before))
            rows.append(row)
        return self.place.put_state(self.place.join(rows))

    def _evaluate(
        self, index: int, step: int, state: TrainState, names: list[str], evaluate: Callable
    ) -> None:
        for name, row in self._rows(names, state).items():
            if name in self.failed:
                continue
            try:
                figures = evaluate(variables_of(row), self.works[name].start)
            except ScoreError as error:
                self._fail(name, error)
            else:
                keeper = self.keepers[name]
                keeper.row(step, {f"eval_{key}": value for key, value in figures.items()})
                keeper.offer(index, step, figures, variables_of(self.place.local(row)))

    def _end_stage(
        self, index: int, state: TrainState, names: list[str], evaluate: Callable
    ) -> dict[str, Variables]:
        task, variables = self.first.task, {}
        for name, row in self._rows(names, state).items():
            if name in self.failed:
                continue
            found, last = variables_of(row), index + 1 == len(self.stages)
            try:
                start = self.works[name].start
                figures = self._end_run(name, found) if last else evaluate(found, start)
            except ScoreError as error:
                self._fail(name, error)
                continue
            variables[name] = found
            self.keepers[name].end_stage(index, figures, variables[name])
            what = f"{self.stages[index].name}: {self.first.dataset.eval_split} {task.score}"
            value = task.form.format(figures[task.score])
            self._say(f"{f'{name}: ' if name else ''}{what} {value}")
        return variables

    def _end_run(self, name: str, variables: Variables) -> Mapping[str, float]:
        """The figures of a run: those of its model as it is taken away."""
        work = self.works[name]
        self.ends[name] = end = ending(work, variables)
        if end.why_not:
            self._say(f"{f'{name}: ' if name else ''}the model cannot be deployed: {end.why_not}")
        return self.figures(work, end.deployed)

    def _check_finite(self, index: int, state: TrainState, names: list[str]) -> None:
        if np.all(np.asarray(state.bad_step) < 0):
            return
        for name, row in self._rows(names, state).items():
            work = self.works[name]
            if name not in self.failed:
                try:
                    check_finite(work, work.wrap(work.method.stages[index]), row)
                except NonFiniteError as error:
                    self._fail(name, error)

    def _rows(self, names: list[str], tree: Any) -> dict[str, Any]:
        return dict(zip(names, self.place.split(tree), strict=True))

    def _fail(self, name: str, error: Exception) -> None:
        if self.group is None:
            raise error
        self.failed[name] = f"{type(error).__name__}: {error}"
        self.keepers[name].fail(error)
        self._say(f"{name}: {self.failed[name]}")

    def _save(self, position: Position, tree: Variables, names: Sequence[str]) -> None:
        if self.group is not None:
            self.group.save(position, tree, names)
        else:
            self.keepers[""].save(position, tree)

    def _restore(self) -> tuple[Position, list[str], Variables]:
        if self.group is not None:
            position, names, saved = self.group.restore()
        else:
            position, saved = self.keepers[""].restore()
            names = [""]
        if saved:
            self._say(
                f"resuming at step {position.steps(self.first)} ({position.phase} of stage "
                f"{position.stage})"
            )
        return position, names, saved

    def _stop_if_asked(self, index: int) -> None:
        if self.preemption.reached(self.saver.save_seconds):
            raise self._stopped(self.first.steps_before(index))

    def _stopped(self, step: int) -> Stopped:
        reason = self.preemption.reason
        return Stopped(f"stopped at step {step} ({reason}); run the same command to resume.")

    def _say(self, text: str) -> None:
        if self.show:
            print(text, flush=True)
