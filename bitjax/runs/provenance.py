"""Commit, versions and device of the process that makes a run."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance() -> dict[str, Any]:
    """Commit, versions and device of this process, for `result.json`."""
    here = Path(__file__).resolve().parent

    def git(*args):
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An environment inside somebody's own repository is not of that repository's commit.
    tracked = git("ls-files", "--error-unmatch", __file__)
    commit = git("rev-parse", "--short=12", "HEAD") if tracked else None
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    device = jax.devices()[0]
    name = f"{device.platform}: {device.device_kind}"
    if device.platform == "cpu":
        name = f"cpu: {os.cpu_count()} x {_processor()}"
    versions = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in _PACKAGES}
    with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout that is not installed
        versions["bitjax"] = metadata.version("bitjax")
    return {"commit": commit, "versions": versions, "device": name}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
