"""The packed file: a deployed model at its true size, in safetensors.

The page `docs/guides/packed_format.md` has the format, and a reader that needs NumPy alone.
"""

import difflib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitjax.checks import (
    NONE,
    TEXT,
    check,
    checked,
    either,
    instance,
    integer,
    mapping,
    number,
    several,
)
from bitjax.export.deploy import Deployed, exact_rules
from bitjax.export.forms import quantizer_of
from bitjax.export.packing import content_of
from bitjax.export.unpacking import DTYPES, variables_of
from bitjax.files.reading import FileError, memory, one_line, parse_json, reading
from bitjax.files.tensors import read_tensors, write_tensors
from bitjax.frameworks.kinds import is_wrapped
from bitjax.frameworks.models import as_model
from bitjax.frameworks.named import from_name, named
from bitjax.frameworks.probe import ask_outside

FORMAT, VERSION = "bitjax-packed", 1
_REMEDY = "copy it again, or write it again by bitjax.save_packed"
# What a file may say of its model besides what the model itself says.
ABOUT = {
    "input_shape": several(integer(0)),
    "input_dtype": TEXT,
    "mean": several(number()),
    "std": several(number(0, above=True)),
    "max_value": number(0, above=True),
    "classes": either(integer(1), several(TEXT, 1)),
    "vocabulary": integer(1),
    "task": TEXT,
    "commit": TEXT,
    "notes": mapping(),
}


class PackedSize(NamedTuple):
    """The bytes of a packed file.

    Attributes:
      payload: codes, bits, scales and other leaves: what `bitjax.model_bytes` counts, rounded up.
      header: the rest: names, shapes, forms, the model and what was said about it.
    """

    payload: int
    header: int


class Packed(NamedTuple):
    """What a packed file holds.

    Attributes:
      deployed: the model and its variables, as `bitjax.deploy` gave them.
      about: what was said about it when it was saved.
    """

    deployed: Deployed
    about: dict[str, Any]


@checked(
    deployed=instance(Deployed, hint="bitjax.deploy(model, variables, x) makes one."),
    about=either(NONE, mapping()),
)
def save_packed(
    path: str | os.PathLike,
    deployed: Deployed,
    *args: Any,
    about: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> PackedSize:
    """Writes a deployed model to one file of its true size.

    Codes take their bits, the bits of a block one byte, everything else four. The file is written
    at once or not at all. A Linen model is named by its class and its fields, so that `load_packed`
    makes it again where the class is one of `bitjax.models`.

    Args:
      path: of the file, by custom with the suffix `.safetensors`.
      deployed: the model, from `bitjax.deploy`.
      *args: positional arguments of the model; of a batch only the shapes count.
      about: what a reader should know of it, by any of these keys. `mean`, `std` and `max_value`
        are of the normalisation (x / max_value - mean) / std. `classes` is their number or their
        names, `vocabulary` the number of tokens. `task` and `commit` are texts. `notes` map names
        to whatever JSON holds. `input_shape` and `input_dtype` are of one example, taken from the
        first argument if they are not given.
      **kwargs: keyword arguments of the model.

    Returns:
      The bytes of the payload and of the header.

    Raises:
      ValueError: a site is not deployed; a leaf takes more than 32 bits a number; the variables are
        not nested dicts of arrays; or a key of `about` is not known.
      OSError: the file could not be written.

    Example:
      >>> import bitjax as bj, jax, jax.numpy as jnp, tempfile
      >>> from bitjax.models import MLP
      >>> net = bj.Quantized(MLP((8,)), [bj.rule(".*/kernel", bj.lsq(bits=4))])
      >>> x = jnp.ones((1, 8, 8, 1))
      >>> fixed = bj.deploy(net, net.init(jax.random.key(0), x), x)
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> save_packed(path, fixed, x).payload  # 592 codes in 296 bytes, 2 bits, 2 scales, 18 biases
      378
    """
    said = _checked_about(_shape_of(args) | dict(about or {}))
    _, asked = ask_outside(deployed.model, deployed.variables, args, kwargs)
    try:
        listed, arrays = content_of(deployed, asked.call.program)
    except ValueError as error:
        raise ValueError(
            f"`deployed` cannot be packed: {error}; give what bitjax.deploy makes of a model whose "
            "variables are nested dicts of arrays."
        ) from None
    metadata = {"format": FORMAT, "version": str(VERSION), "bitjax": _version(),
                "model": _text(named(deployed.model)), "about": said,
                "index": _text(listed)}  # fmt: skip
    payload = sum(array.nbytes for array in arrays.values())
    return PackedSize(payload, write_tensors(path, metadata, arrays) - payload)


def load_packed(path: str | os.PathLike, model: Any = None) -> Packed:
    """Reads a packed file; nothing in it is executed, and no module that it names is imported.

    Args:
      path: of the file.
      model: the model that was deployed, wrapped or not, its rules do not matter. It is needed
        where the file's model is none of `bitjax.models` with plain values as fields.

    Returns:
      The deployed model with its variables, bit for bit those that were saved, and what was said
      about it.

    Raises:
      FileError: one line, a ValueError, for a file that is missing, damaged, of another format or
        a newer version, or that does not name its model.

    Example:
      >>> import bitjax as bj, jax, jax.numpy as jnp, tempfile
      >>> from bitjax.models import MLP
      >>> net = bj.Quantized(MLP((8,)), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jnp.ones((1, 8, 8, 1))
      >>> fixed = bj.deploy(net, net.init(jax.random.key(0), x), x)
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> size = bj.save_packed(path, fixed, x, about={"classes": 10})
      >>> (net, variables), about = load_packed(path)
      >>> about["classes"], about["input_shape"]
      (10, [8, 8, 1])
      >>> bool((net.apply(variables, x) == fixed.model.apply(fixed.variables, x)).all())
      True
    """
    tensors = read_tensors(path, _REMEDY)
    metadata = tensors.metadata
    if metadata.get("format") != FORMAT:
        what = "is a safetensors file, but no packed model"
        raise FileError(path, what, "give one that bitjax.save_packed wrote")
    _check_version(path, metadata.get("version", ""))
    with reading(path, _REMEDY):
        try:
            texts = (metadata.get(key, "") for key in ("model", "about", "index"))
            spec, about, listed = map(parse_json, texts)
            _checked_about(about)
            rows = {name: tensors.array(name) for name in tensors.entries}
            if unknown := sorted(set(rows) - set(DTYPES)):
                raise ValueError(f"it has the array {unknown[0]!r}")
            variables, forms = variables_of(listed, rows, memory())
        except ValueError as error:
            raise FileError(path, f"is damaged ({one_line(error)})", _REMEDY) from None
    net = _model_of(path, spec, model)
    rules = exact_rules({site: quantizer_of(form) for site, form in forms.items()})
    return Packed(Deployed(net.with_rules(rules), variables), about)


def _check_version(path, version):
    if not version.isdecimal() or not version.isascii() or len(version) > 9:
        raise FileError(path, "is damaged (its version is no number)", _REMEDY)
    if int(version) > VERSION:
        what = f"is of version {version} of the format, and bitjax {_version()} reads {VERSION}"
        raise FileError(path, what, "update bitjax")


def _model_of(path, spec, model):
    """The model that was given, or else the one that the file names."""
    if model is None:
        try:
            return from_name(spec)
        except ValueError as error:
            raise FileError(path, one_line(error), "pass the model as `model=`") from None
    net: Any = as_model(model)
    if is_wrapped(model) or not isinstance(spec, Mapping):
        return net
    try:
        return net.clone(**{key: spec[key] for key in ("sums", "calls") if key in spec})
    except (TypeError, ValueError) as error:
        raise FileError(path, f"is damaged ({one_line(error)})", _REMEDY) from None


def _checked_about(about: Any) -> str:
    """What is said of a model as JSON; else a ValueError."""
    try:
        text = _text(about)
        plain = parse_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`about` must be what JSON holds: {one_line(error)}.") from None
    if not isinstance(plain, dict):
        raise ValueError("`about` must be a mapping.")
    if unknown := [key for key in plain if key not in ABOUT]:
        near = difflib.get_close_matches(unknown[0], ABOUT, 1)
        hint = f"did you mean {near[0]!r}?" if near else "your own go below 'notes'."
        raise ValueError(f"`about` has no key {unknown[0]!r}, only {', '.join(ABOUT)}; {hint}")
    check(ABOUT, plain)
    if (bad := _unprintable(plain)) is not None:  # a terminal would obey it
        raise ValueError(f"`about` must hold lines of printable text, got {ascii(bad)[:80]}.")
    return text


def _unprintable(value):
    """A text that is no line of printable characters, if there is one."""
    if isinstance(value, str):
        return None if value.isprintable() else value
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    parts = map(_unprintable, inner) if isinstance(inner, list) else ()
    return next((bad for bad in parts if bad is not None), None)


def _shape_of(args):
    """The shape and the dtype of one example of the first argument, if that is an array."""
    if not args or not hasattr(args[0], "dtype") or not np.ndim(args[0]):
        return {}
    return {"input_shape": list(np.shape(args[0])[1:]), "input_dtype": str(args[0].dtype)}


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_of_numpy)


def _of_numpy(value):
    """NumPy's and JAX's numbers as JSON has them."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"a {type(value).__name__} is none")
    return value.tolist()


def _version() -> str:
    # Not imported: the package's front loads the table of contents, which is above this room.
    return str(getattr(sys.modules.get("bitjax"), "__version__", ""))
