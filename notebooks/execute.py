"""Executes the notebooks: each NAME.py becomes NAME.ipynb, with its outputs.

    python -m notebooks.execute            # all of them
    python -m notebooks.execute 01 04      # those whose names begin so

People edit and review the .py files (jupytext's percent format); the .ipynb beside them are made
from these, and are kept so that a reader on a code host sees tables and pictures.
"""

import base64
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
# Outputs are of the CPU, whatever the machine has, and of this checkout, whatever is installed.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
# What a reader's program needs; the rest differs from machine to machine.
_METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class _ThisInterpreter(KernelSpecManager):
    """Kernels of the interpreter that runs this, not of one that a machine's owner registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--log-level=ERROR"]  # it warns of sockets that others on the machine could read
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def sources(prefixes: Sequence[str] = ()) -> list[Path]:
    """The notebooks' .py files whose names begin with one of the prefixes; all without any."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    if not prefixes:
        return found
    unknown = [p for p in prefixes if not any(path.name.startswith(p) for path in found)]
    if unknown:
        names = ", ".join(path.stem for path in found)
        raise ValueError(f"there is no notebook {unknown[0]!r}: choose among {names}.")
    return [path for path in found if path.name.startswith(tuple(prefixes))]


def execute(source: Path, *, timeout: int = 300) -> Any:
    """Runs a notebook from a clean kernel, in its own folder.

    Args:
      source: the .py file.
      timeout: of a cell, in seconds.

    Returns:
      The notebook with its outputs, and without what tells one machine or day from another.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook: Any = jupytext.read(source)
    # Not random: the same notebook is the same file.
    for i, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"cell-{i:02d}", {}
    notebook.metadata = nbformat.from_dict(_METADATA)
    manager = AsyncKernelManager(kernel_spec_manager=_ThisInterpreter())
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    )
    client.execute(cleanup_kc=True, env={**os.environ, **_ENVIRONMENT})
    notebook.metadata = nbformat.from_dict(_METADATA)  # the kernel has added to it
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                _shrink(output)
    return notebook


def _shrink(output: Any) -> None:
    """A picture of 160 dots per inch in 256 colours, shown at the size of 80."""
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    file = io.BytesIO()
    few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    few.save(file, "png", optimize=True)
    output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    width, height = picture.size
    output.metadata["image/png"] = {"width": width // 2, "height": height // 2}


def main(prefixes: Sequence[str]) -> None:
    """Executes notebooks and writes them."""
    for source in sources(prefixes):
        began = time.monotonic()
        notebook = execute(source)
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        kilobytes = target.stat().st_size / 1024
        print(f"{target.name}: {time.monotonic() - began:.0f} s, {kilobytes:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
