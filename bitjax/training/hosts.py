"""Several hosts as one run: connecting them, speaking once, agreeing on what is run."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bitjax.runs.folder import flatten

T = TypeVar("T")

# How many processes a launcher has started together; each of them finds the number here.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (srun, MPI, a TPU slice) says that this process is one of several."""
    several = any(environment.get(name, "1") not in ("", "1") for name in _COUNTS)
    # Cloud TPUs and GKE list the hosts of a slice.
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def connect(
    asked: bool | None = None,
    *,
    coordinator: str | None = None,
    hosts: int | None = None,
    host: int | None = None,
) -> None:
    """Connects this process with the others of its run; before anything that asks for devices.

    `asked` None connects where a launcher or a coordinator says that there are several.
    """
    if asked is None:
        asked = coordinator is not None or in_cluster()
    if not asked and (hosts, host) != (None, None):
        raise ValueError(
            f"`hosts` and `host` are of a run of several hosts, got {hosts} and {host}: give the "
            "coordinator's address:port, too."
        )
    if not asked or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator, hosts, host)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the hosts of this run cannot be connected: {' '.join(str(error).split())} Start it "
            "with srun, mpirun or on a TPU slice, or say the coordinator's address:port, how many "
            "hosts there are and which of them this is."
        ) from error


def is_first() -> bool:
    """Whether this is the host that writes what only one may write."""
    return jax.process_index() == 0


def check_same(config: Mapping[str, Any]) -> None:
    """Stops every host if one of them was started with another config."""
    found = [flatten(json.loads(text)) for text in gather(json.dumps(config))]
    differ = differences(found)
    if differ:
        raise ValueError(
            f"the {len(found)} hosts were started with different configs ({differ}). Give all of "
            "them the same command and the same code."
        )


def differences(configs: list[dict[str, Any]]) -> str:
    """The keys in which flat configs differ, with each host's value."""
    keys = sorted({key for config in configs for key in config})
    shown = []
    for key in keys:
        values = [repr(c[key]) if key in c else "absent" for c in configs]
        if len(set(values)) > 1:
            held = ", ".join(f"{value} on host {i}" for i, value in enumerate(values))
            shown.append(f"{key}: {held}")
    return "; ".join(shown)


def gather(text: str) -> list[str]:
    """The texts of all hosts, in their order, on each of them."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(1, int(np.max(sizes))), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        np.asarray(row[:size]).tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def on_first(action: Callable[[], Any]) -> None:
    """Does something on the first host; what goes wrong there stops all of them."""
    on_all(action if is_first() else lambda: None)


def on_all(action: Callable[[], T]) -> T:
    """Does something on every host; what goes wrong on one of them stops all."""
    if jax.process_count() == 1:
        return action()
    done: list[T] = []
    problem = ""
    try:
        done.append(action())
    except (ValueError, OSError, ImportError) as error:
        problem = str(error) or type(error).__name__
    problems = gather(problem)
    if any(problems):
        raise ValueError("; ".join(f"host {i}: {p}" for i, p in enumerate(problems) if p))
    return done[0]
