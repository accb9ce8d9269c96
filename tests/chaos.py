"""Kills runs at random moments and compares what they leave with a run that nothing disturbed.

Run: python -m tests.chaos [--kills 30] [--seed 0]
"""

import argparse
import random
import re
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.small_runs import (
    CASES,
    Process,
    Setting,
    Whole,
    assert_same_run,
    make_setting,
    run_whole,
)


def unfinished_writes(folder: Path) -> list[str]:
    """The checkpoints that a process was writing, or removing, when it ended."""
    there = folder / "checkpoints"
    names = [path.name for path in there.iterdir()] if there.is_dir() else []
    bare = [
        name
        for name in names
        if re.fullmatch(r"[\d-]+", name) and not (there / name / "manifest.json").exists()
    ]
    return bare + [n for n in names if ".orbax-checkpoint-tmp" in n or n.endswith(".removed")]


class Kills:
    """Kills the runs of a setting, one after the other, and holds each of them to the whole one.

    Kinds of moments are `anywhere`, in the time that a run takes; `training`, after some more rows
    of metrics; `writing`, while a checkpoint is written after them; `special`, while its method
    solves or allocates.
    """

    def __init__(self, setting: Setting, whole: Whole, folder: Path, chance: random.Random):
        self.setting, self.whole, self.parent, self.chance = setting, whole, folder, chance
        self.runs = 1
        self.fell: list[tuple[str, str]] = []  # each kill's kind, and where it fell
        self.old: set[str] = set()  # what the process before left unfinished, and its rows
        self.before = 0

    @property
    def folder(self) -> Path:
        """The run that is being killed."""
        return self.parent / f"run{self.runs}"

    def kill(self, kind: str) -> None:
        """Kills a process of the run at a moment of a kind; the run may have been killed before."""
        while True:
            self.old, self.before = set(unfinished_writes(self.folder)), self._rows()
            with self.setting.start(self.folder) as process:
                if self._wait(process, kind):
                    process.popen.send_signal(signal.SIGKILL)
                    process.end()
                    self.fell.append((kind, self._where(process)))
                    return
                assert process.end() == 0, process.said
            # It had ended before its kill: it is whole again, and another takes its place.
            assert_same_run(self.whole.folder, self.folder)
            self.runs += 1

    def finish(self) -> None:
        """Ends the run that was killed last."""
        self.setting.finish(self.folder)
        assert_same_run(self.whole.folder, self.folder)

    def _wait(self, process: Process, kind: str) -> bool:
        if kind == "special":
            process.wait_until(lambda: self._special(process))
        elif kind != "anywhere":
            wanted = self._rows() + self.chance.randint(1, self.whole.rows // 3)
            process.wait_until(lambda: self._rows() >= wanted)
        longest = {"anywhere": self.whole.seconds, "training": 0.2, "writing": 0.05}
        time.sleep(self.chance.uniform(0.0, longest.get(kind, self.whole.special)))
        if kind == "writing":
            process.wait_until(lambda: set(unfinished_writes(self.folder)) - self.old)
        return process.popen.poll() is None

    def _rows(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _special(self, process: Process) -> bool:
        """Whether it has reached what is special to its method; it is stage 1."""
        case = self.setting.case
        resumed = re.search(r"resuming .*\((enter|prepare) of stage 1\)", process.said)
        return bool(case.begins and (process.when(case.begins) or resumed))

    def _where(self, process: Process) -> str:
        if set(unfinished_writes(self.folder)) - self.old:
            return "writing"
        if self._special(process) and not process.when(self.setting.case.ends):
            return "special"
        begun = "resuming" in process.said or self._rows() != self.before
        return "training" if begun else "start"


KINDS = {
    "bitpruning": ("writing", "training", "anywhere", "writing"),
    "tsq": ("special", "special", "writing", "anywhere"),
    "bottleneck": ("special", "training", "special", "anywhere"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Kills so many runs, in turn of each method, and prints where the kills fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for i, name in enumerate(CASES):
            folder = Path(place, name)
            folder.mkdir()
            setting = make_setting(name, folder)
            whole = run_whole(setting, folder / "whole")
            kills = Kills(setting, whole, folder, random.Random(f"{args.seed} {name}"))
            for number in range(i, args.kills, len(CASES)):
                kills.kill(KINDS[name][number // len(CASES) % len(KINDS[name])])
            kills.finish()
            for kind, where in kills.fell:
                print(f"{name}: a kill of kind {kind} fell into {where}")
            print(f"{name}: {len(kills.fell)} kills, {kills.runs} runs, all as if undisturbed")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
