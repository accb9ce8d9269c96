"""Published float weights as Flax variables."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bitjax.checks import SWITCH, checked
from bitjax.files.npz import npz_names, read_npz
from bitjax.models.layers import EPSILON
from bitjax.models.resnet import CifarResNet
from bitjax.models.squeezenet import SqueezeNet

# What the published ResNets' inputs were normalised by, per channel, of value / 255: ImageNet's
# numbers, not CIFAR-10's.
RESNET_MEAN = (0.485, 0.456, 0.406)
RESNET_STD = (0.229, 0.224, 0.225)
# What the published SqueezeNet's inputs had subtracted, red, green and blue, of value / 255; they
# were not divided, so that pixels span 255.
SQUEEZENET_MEAN = (123 / 255, 117 / 255, 104 / 255)
SQUEEZENET_STD = (1 / 255, 1 / 255, 1 / 255)

Key = tuple[str, ...]
Named = dict[Key, tuple[str, tuple[int, ...]]]  # the name in a file, and the shape there


@checked(folded=SWITCH)
def load_resnet(path: str | Path, *, folded: bool = False) -> dict[str, Any]:
    """Read the weights of a CIFAR ResNet from an .npz file.

    The file's names are `stem.conv.kernel`, `stem.bn.{scale,bias,mean,var}`,
    `stage1.block1.{conv1,conv2}.kernel`, `stage1.block1.{bn1,bn2}.{scale,bias,mean,var}`, ...,
    `fc.{kernel,bias}`; kernels are HWIO. Depth, width and classes follow from names and shapes.

    Args:
      path: The file.
      folded: Whether normalisations are folded into kernels and biases, as evaluation has them.

    Returns:
      {'params': ..., 'batch_stats': ...} for `CifarResNet`, float32; if folded {'params': ...} for
      `CifarResNet(norm="none")`. Normalise the inputs by
      `RESNET_MEAN` and `RESNET_STD`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If an array is missing, too many, of the wrong shape or not finite.

    Example:
      >>> load_resnet("no/such.npz")
      Traceback (most recent call last):
      bitjax.files.reading.MissingError: no/such.npz is missing; give a ResNet's .npz file.

    Source: the weights in bitjax's data folder are resnet20 of
      github.com/akamaster/pytorch_resnet_cifar10, 91.73 % top-1 on CIFAR-10's test set.
    """
    path = Path(path)
    arrays = _read(path, "give a ResNet's .npz file")
    expected = _expected_shapes(path, arrays)
    found = _taken(
        path, arrays, {key: (_file_name(key), s) for key, s in expected.items()}, "CIFAR ResNet"
    )
    return traverse_util.unflatten_dict(_folded(found) if folded else found)


def load_llama(path: str | Path) -> dict[str, Any]:
    """Read the weights of a Llama from an .npz file.

    The file's names are `tok_embeddings`, `layers.0.{attention_norm,wq,wk,wv,wo}`,
    `layers.0.{ffn_norm,w1,w2,w3}`, ..., `norm`; matrices are [out, in]. Layers and sizes follow
    from names and shapes; how the channels are parted into heads is not in the file.

    Args:
      path: The file.

    Returns:
      {'params': ...} for `Llama`, float32, kernels [in, out].

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If an array is missing, too many, of the wrong shape or not finite.

    Example:
      >>> load_llama("no/such.npz")
      Traceback (most recent call last):
      bitjax.files.reading.MissingError: no/such.npz is missing; give a Llama's .npz file.

    Source: the weights in bitjax's data folder are stories260K of
      huggingface.co/karpathy/tinyllamas, for `Llama()`: perplexity 3.7922 on 120 test stories.
    """
    path = Path(path)
    arrays = _read(path, "give a Llama's .npz file")
    expected = _shapes_of_llama(path, arrays)
    found = _taken(path, arrays, expected, "Llama")
    return traverse_util.unflatten_dict(
        {key: x.T if key[-1] == "kernel" else x for key, x in found.items()}
    )


def load_squeezenet(path: str | Path) -> dict[str, Any]:
    """Read the weights of a SqueezeNet from an .npz file.

    The file's names are `conv1.{kernel,bias}`, `fire2.conv1x1_1.{kernel,bias}`, `fire2.conv1x1_2`,
    `fire2.conv3x3_2`, ..., `fire9.conv3x3_2`, `conv_final.{kernel,bias}`; kernels are HWIO, and
    `conv1` reads blue, green and red. Width and classes follow from shapes.

    Args:
      path: The file.

    Returns:
      {'params': ...} for `SqueezeNet`, float32, with `conv1` turned round to read red, green and
      blue. Normalise images of 227x227 pixels by `SQUEEZENET_MEAN` and `SQUEEZENET_STD`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If an array is missing, too many, of the wrong shape or not finite.

    Example:
      >>> load_squeezenet("no/such.npz")
      Traceback (most recent call last):
      bitjax.files.reading.MissingError: no/such.npz is missing; give a SqueezeNet's .npz file.

    Source: the weights in bitjax's data folder are those of
      github.com/songhan/SqueezeNet-Deep-Compression, 57.5 % top-1 on ImageNet's validation set. Two
      thirds of them are pruned: exact zeros, which a quantizer should keep.
    """
    path = Path(path)
    arrays = _read(path, "give a SqueezeNet's .npz file")
    found = _taken(path, arrays, _shapes_of_squeezenet(path, arrays), "SqueezeNet")
    first = ("params", "conv1", "kernel")
    return traverse_util.unflatten_dict({**found, first: found[first][:, :, ::-1]})


def _read(path: Path, remedy: str) -> dict[str, np.ndarray]:
    return read_npz(path, npz_names(path, remedy), remedy)


def _taken(
    path: Path, arrays: Mapping[str, np.ndarray], expected: Named, kind: str
) -> dict[Key, jax.Array]:
    """All arrays of a file as float32, each by the key of the name it has there."""
    for name in sorted(set(arrays) - {name for name, _ in expected.values()}):
        raise ValueError(f"{path} holds {name!r}, which no {kind} has; remove it.")
    found = {}
    for key, (name, shape) in expected.items():
        array = _take(path, arrays, name)
        if array.shape != shape:
            raise ValueError(f"{path} holds {name!r} of shape {array.shape}, expected {shape}.")
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path} holds {name!r} of {array.dtype}, expected floats.")
        with np.errstate(over="ignore"):  # what is too large for a float32 becomes infinite
            found[key] = jnp.asarray(array.astype(np.float32))
        if not np.isfinite(found[key]).all():
            raise ValueError(f"{path} holds {name!r} with values that are not finite in float32.")
    return found


def _shapes_of_llama(path: Path, arrays: Mapping[str, np.ndarray]) -> Named:
    table, keys, gate = (
        _take(path, arrays, n) for n in ("tok_embeddings", "layers.0.wk", "layers.0.w1")
    )
    for name, x in (("tok_embeddings", table), ("layers.0.wk", keys), ("layers.0.w1", gate)):
        if x.ndim != 2:
            raise ValueError(f"{path} holds {name!r} of shape {x.shape}, expected two axes.")
    width, narrow, hidden = table.shape[1], len(keys), len(gate)
    layers = {found[1] for name in arrays if (found := re.match(r"layers\.(\d+)\.", name))}
    inside = {
        **{(name, "scale"): (width,) for name in ("attention_norm", "ffn_norm")},
        **{("attention", name, "kernel"): (width, width) for name in ("wq", "wo")},
        **{("attention", name, "kernel"): (narrow, width) for name in ("wk", "wv")},
        **{("ffn", name, "kernel"): (hidden, width) for name in ("w1", "w3")},
        ("ffn", "w2", "kernel"): (width, hidden),
    }
    expected: Named = {
        ("params", "embed", "embedding"): ("tok_embeddings", table.shape),
        ("params", "norm", "scale"): ("norm", (width,)),
    }
    for i in range(len(layers)):
        for key, shape in inside.items():
            expected["params", f"layers_{i}", *key] = (f"layers.{i}.{key[-2]}", shape)
    return expected


def _shapes_of_squeezenet(path: Path, arrays: Mapping[str, np.ndarray]) -> Named:
    narrow, head = (_take(path, arrays, f"{n}.kernel") for n in ("fire2.conv1x1_1", "conv_final"))
    if narrow.ndim != 4 or head.ndim != 4 or 0 in narrow.shape + head.shape:
        raise ValueError(
            f"{path} holds 'fire2.conv1x1_1.kernel' of shape {narrow.shape} and "
            f"'conv_final.kernel' of shape {head.shape}, expected four axes each (HWIO)."
        )
    theirs = {
        "squeeze": "conv1x1_1",
        "expand1": "conv1x1_2",
        "expand3": "conv3x3_2",
        "head": "conv_final",
    }
    model = SqueezeNet(num_classes=head.shape[3], width=narrow.shape[3])
    flat = _flat_shapes(model, (1, 35, 35, 3))
    return {key: (".".join(theirs.get(n, n) for n in key[1:]), s) for key, s in flat.items()}


def _flat_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[Key, tuple[int, ...]]:
    """The shape of each variable of a model of images."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    flat: dict[Any, Any] = traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), images)
    )
    return {key: leaf.shape for key, leaf in flat.items()}


def _folded(variables: Mapping[Key, jax.Array]) -> dict[Key, jax.Array]:
    """Kernels with the factors of the normalisations behind them, and biases with the rest."""
    found = {key: x for key, x in variables.items() if key[0] == "params"}
    for key in [key for key in found if key[-1] == "scale"]:
        *above, name, _ = key[1:]
        conv = {"stem_bn": "stem", "bn1": "conv1", "bn2": "conv2"}[name]
        layer = ("params", *above, conv)
        scale, bias = (np.asarray(found.pop((*key[:-1], n)), np.float64) for n in ("scale", "bias"))
        mean, var = (
            np.asarray(variables["batch_stats", *above, name, n], np.float64)
            for n in ("mean", "var")
        )
        factor = scale / np.sqrt(var + EPSILON)
        kernel = np.asarray(found[*layer, "kernel"], np.float64) * factor
        found[*layer, "kernel"] = jnp.asarray(kernel.astype(np.float32))
        found[*layer, "bias"] = jnp.asarray((bias - mean * factor).astype(np.float32))
    return found


def _expected_shapes(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[Key, tuple[int, ...]]:
    blocks = {found[1] for name in arrays if (found := re.match(r"stage1\.block(\d+)\.", name))}
    stem, head = (_take(path, arrays, name) for name in ("stem.conv.kernel", "fc.kernel"))
    if stem.ndim != 4 or head.ndim != 2 or 0 in stem.shape + head.shape:
        raise ValueError(
            f"{path} holds 'stem.conv.kernel' of shape {stem.shape} and 'fc.kernel' of shape "
            f"{head.shape}, expected four axes (HWIO) and two."
        )
    model = CifarResNet(
        depth=6 * max(len(blocks), 1) + 2, num_classes=head.shape[1], width=stem.shape[3]
    )
    return _flat_shapes(model, (1, 32, 32, stem.shape[2]))


def _file_name(key: tuple[str, ...]) -> str:
    """('params', 'stage1', 'block1', 'bn1', 'scale') -> 'stage1.block1.bn1.scale'."""
    name = ".".join(key[1:])
    for ours, theirs in (("stem_bn.", "stem.bn."), ("head.", "fc."), ("stem.k", "stem.conv.k")):
        name = name.replace(ours, theirs) if name.startswith(ours) else name
    return name


def _take(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(
            f"{path} lacks {name!r}; it has {len(arrays)} arrays, first of them "
            f"{sorted(arrays)[:3]}."
        )
    return arrays[name]
