"""The sites of a graph: nodes that quantize tensors, and the integers of kernels."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from bitjax.export.arrays import Arrays
from bitjax.export.nodes import DEQUANTIZE, LOOKUP, QUANTIZE
from bitjax.program.values import Site
from bitjax.quantizers.base import Quantizer
from bitjax.rules import Rules, quantizer_of
from bitjax.variables import QUANT


class Sites:
    """What is quantized, by what, and where."""

    def __init__(self, arrays: Arrays, rules: Rules, quant: Any):
        self.arrays, self.rules, self.quant = arrays, rules, quant
        self.places: dict[str, list[tuple[int, int]]] = {}
        # numbers of codes, integers and levels, by site and by the number of the parameter
        self.kernels: dict[tuple[str, int], dict[str, int]] = {}

    def integers(self, number: int, site: Site) -> int:
        """A site's integers."""
        if site.role == "kernel":
            return self.kernel(number, site)["integers"]
        quantizer, params = self.quantizer(site), self.quant[site.name]
        assert quantizer is not None and quantizer.numbers is not None
        told = [np.asarray(x, np.float32) for x in quantizer.numbers(params, {})]
        scale, rate, first, last = told
        edges = np.asarray(params["edges"], np.float32) if "edges" in params else None
        coding = quantizer.traits.coding
        found: dict[str, Any] = {
            "site": site.name, "rate": rate, "first": first, "last": last, "scale": scale,
            "edges": edges, "bits": np.asarray(params["bits"]), "coding": coding,
        }  # fmt: skip
        # Sites that read one tensor with the same numbers are quantized once.
        own = [*told, *([] if edges is None else [edges])]
        key = number, coding, *((x.shape, x.tobytes()) for x in own)
        if key not in self.arrays.shared:
            x = self.arrays.cast(number, np.float32)
            out = self.arrays.new(self.arrays.value(number), np.float32)
            self.arrays.shared[key] = self.arrays.node(QUANTIZE, [x], [out], found, site.name)
        return self._at(site, number, self.arrays.shared[key])

    def levels(self, number: int, site: Site) -> int:
        """A site's levels; the tensor itself where nothing quantizes it."""
        quantizer = self.quantizer(site)
        if quantizer is None:
            return number
        if site.role == "kernel":
            return self.kernel(number, site)["levels"]
        params, dtype = self.quant[site.name], self.arrays.value(number).dtype
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else np.dtype(np.float32)
        if quantizer.numbers is not None:
            whole = self.integers(number, site)
            key, scale = ("levels", whole), np.asarray(quantizer.numbers(params, {}).scale)
            if key not in self.arrays.shared:
                out, own = (
                    self.arrays.new(self.arrays.value(whole)),
                    {"site": site.name, "scale": scale},
                )
                self.arrays.shared[key] = self.arrays.node(
                    DEQUANTIZE, [whole], [out], own, site.name
                )
            return self.arrays.cast(self.arrays.shared[key], dtype)
        edges, levels = (np.asarray(params[name], np.float32) for name in ("edges", "levels"))
        key = number, edges.shape, edges.tobytes(), levels.tobytes()
        if key not in self.arrays.shared:
            out = self.arrays.new(self.arrays.value(number), np.float32)
            own = {"site": site.name, "edges": edges, "levels": levels,
                   "bits": np.asarray(params["bits"])}  # fmt: skip
            x = self.arrays.cast(number, np.float32)
            self.arrays.shared[key] = self.arrays.node(LOOKUP, [x], [out], own, site.name)
        return self.arrays.cast(self._at(site, number, self.arrays.shared[key]), dtype)

    def _at(self, site: Site, number: int, result: int) -> int:
        """Notes where a site is."""
        places = self.places.setdefault(site.name, [])
        if (number, result) not in places:
            places.append((number, result))
        return result

    def kernel(self, number: int, site: Site) -> dict[str, int]:
        """The numbers of a kernel's codes, integers and levels."""
        if (site.name, number) in self.kernels:
            return self.kernels[site.name, number]
        quantizer = self.quantizer(site)
        assert quantizer is not None
        integers = quantizer.integers

        def run(x, params):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                x = x.astype(jnp.float32)
            codes = quantizer.encode(params, {}, x).codes
            levels = quantizer.apply(params, {}, x, train=False)
            return [codes, levels, *([] if integers is None else [integers(params, {}, x)])]

        like = self.arrays.value(number)
        found = {"codes": self.arrays.new(like, np.int32), "levels": self.arrays.new(like)}
        if integers is not None:
            found["integers"] = self.arrays.new(like, np.float32)
        self.arrays.constants.add(run, [number, (QUANT, site.name)], found.values())
        self.kernels[site.name, number] = found
        return found

    def quantizer(self, site: Site) -> Quantizer | None:
        """What quantizes a site; None where it is float."""
        return quantizer_of(self.rules, site.name) if site.name in self.quant else None
