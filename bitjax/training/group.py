"""The checkpoints of several runs that are rows of one state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.lock import lock
from bitjax.training.keeper import Keeper, Position, position_of, shapes_at
from bitjax.training.notes import other_notes
from bitjax.training.work import Work


class Group:
    """Saves and restores the rows of a group together, in the order of `works`."""

    def __init__(
        self, works: Mapping[str, Work], keepers: Mapping[str, Keeper], folder: Path | None
    ):
        self.works, self.keepers = works, keepers
        self.failed: dict[str, str] = {}  # a failed row stays in the state until its stage ends
        self._folder, self._lock = folder, None
        self._checkpoints = None
        if folder is not None:
            self._lock = lock(folder)
            self._checkpoints = Checkpoints(folder / "checkpoints", check=self._lock.check)

    @property
    def save_seconds(self) -> float:
        """Seconds that the slowest checkpoint has taken."""
        return self._checkpoints.slowest if self._checkpoints is not None else 0.0

    def save(self, position: Position, tree: Mapping[str, Any], names: Sequence[str]) -> None:
        """Saves a checkpoint of the rows that `names` lists."""
        if self._checkpoints is None:
            return
        meta = {
            "place": list(position),
            "hashes": self._hashes(),
            "rows": list(names),
            "failed": self.failed,
            "notes": {name: keeper.notes() for name, keeper in self.keepers.items()},
        }
        first = next(iter(self.works.values()))
        self._checkpoints.save(position.steps(first), dict(tree), meta)

    def restore(self) -> tuple[Position, list[str], dict[str, Any]]:
        """The position to go on from, the rows that are left, and what was saved there."""
        restored = self._checkpoints.restore(self._template) if self._checkpoints else None
        for keeper in self.keepers.values():
            keeper.rewind(restored.step if restored else -1)
        if restored is None:
            return Position(), list(self.works), {}
        self.failed.update(restored.meta["failed"])
        for name, notes in restored.meta["notes"].items():
            self.keepers[name].recall(notes)
        first = next(iter(self.works.values()))
        return position_of(restored.meta, first), restored.meta["rows"], restored.state

    def close(self) -> None:
        """Waits for the last checkpoint."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._lock is not None:
            self._lock.close()

    def _template(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        hashes = meta.get("hashes")
        if not isinstance(hashes, dict) or not self._are_of(hashes):
            there = ", ".join(hashes) if isinstance(hashes, dict) else "none of a group"
            raise ValueError(
                f"the folder's checkpoint is of other runs: {there} there, {', '.join(self.works)} "
                "now. Choose another folder, or remove its checkpoints."
            )
        rows, failed, notes = (meta.get(key) for key in ("rows", "failed", "notes"))
        if not (isinstance(rows, list) and isinstance(failed, dict) and isinstance(notes, dict)):
            raise other_notes(TypeError("`rows`, `failed` or `notes`"))
        if other := ({*map(str, rows), *failed, *notes} - {*self.works}):
            raise other_notes(KeyError(sorted(other)[0]))
        for name, found in notes.items():
            self.keepers[name].check_own(found, self._folder)
        first = next(iter(self.works.values()))
        one, count = shapes_at(first, position_of(meta, first)), len(rows)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), one)

    def _are_of(self, hashes: Mapping[str, Any]) -> bool:
        same = all(work.is_config_of(hashes.get(name) or None) for name, work in self.works.items())
        return same and hashes.keys() == self.works.keys()

    def _hashes(self) -> dict[str, str]:
        return {name: str(work.facts.get("config_hash", "")) for name, work in self.works.items()}


def check_rows(works: Mapping[str, Work]) -> None:
    """Checks that runs can be rows of one program, as far as their settings tell."""
    first = next(iter(works.values())).settings
    for name, work in works.items():
        for key, value in work.settings._asdict().items():
            if key != "seed" and value != getattr(first, key):
                raise ValueError(
                    f"`{key}` must be the same in all rows of a group, got {value!r} in {name} and "
                    f"{getattr(first, key)!r} in the first: run them one by one."
                )
    if first.parallel not in ("auto", "none") or first.devices > 1:
        raise ValueError(
            f"rows of a group share one device: leave out `parallel` and `devices`, got "
            f"{first.parallel!r} and {first.devices}, or run the rows one by one."
        )
