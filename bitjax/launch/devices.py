"""Finds this machine's devices, and makes environments that show a process one of them."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

# In a process of its own: whoever asks JAX for devices takes their memory, or locks them.
_PROBE = """
import json, jax
devices = jax.local_devices()
chips = {str(getattr(d, "coords", d.id)) for d in devices}
version = devices[0].client.platform_version.lower()
platform = "rocm" if "rocm" in version else devices[0].platform
print(json.dumps([platform, len(chips)]))
"""


class Devices(NamedTuple):
    """The machine's devices: `cpu`, `gpu`, `rocm` or `tpu`, and how many."""

    platform: str
    count: int


class Slot(NamedTuple):
    """A place for one run at a time.

    Attributes:
      name: a name to print.
      environment: the variables that a run's process gets in addition.
      cores: the processors that the run may use; empty for all.
    """

    name: str
    environment: dict[str, str]
    cores: frozenset[int] = frozenset()


def find_devices() -> Devices:
    """Asks JAX for the machine's devices, in a process that ends with the answer."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", _PROBE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"JAX finds no device here: {last[0]}.")
    return Devices(*json.loads(done.stdout.splitlines()[-1]))


def make_slots(devices: Devices, count: int = 0) -> list[Slot]:
    """Makes `count` slots of one device each; 0 means all accelerators, or 1 slot on a CPU.

    Slots on the CPU share its cores out among them: programs that each take all cores for
    themselves are slower together than one after another.
    """
    if devices.platform == "cpu":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        count = count or 1
        # With more slots than cores some share one.
        shares = [frozenset(cores[i::count] or cores[i % len(cores) :][:1]) for i in range(count)]
        return [Slot(f"cpu{i}", {"JAX_PLATFORMS": "cpu"}, share) for i, share in enumerate(shares)]
    if count > devices.count:
        raise ValueError(
            f"`slots` must be at most {devices.count}, the number of {devices.platform} devices "
            f"here, got {count}: a device runs one run at a time (or several, vectorized)."
        )
    return [_slot(devices, i) for i in range(count or devices.count)]


def _slot(devices: Devices, index: int) -> Slot:
    if devices.platform == "tpu":
        names = _visible("TPU_VISIBLE_DEVICES", devices.count)
        environment = {
            "TPU_VISIBLE_DEVICES": names[index],
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    else:
        rocm = devices.platform == "rocm"
        variable = "HIP_VISIBLE_DEVICES" if rocm else "CUDA_VISIBLE_DEVICES"
        environment = {variable: _visible(variable, devices.count)[index]}
    return Slot(f"{devices.platform}{index}", environment)


def _visible(variable: str, count: int) -> list[str]:
    """The names of the devices that this process may see: a scheduler may have chosen them."""
    given = [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
    return given if len(given) == count else [str(i) for i in range(count)]
