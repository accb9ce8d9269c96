"""A packed file gives a model back bit for bit, at the size that `model_bytes` counts."""

import json
import math
import struct
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import bitjax as bj
from bitjax.export import forms
from bitjax.export.deploy import exact_rules
from bitjax.files.reading import FileError
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.models import MLP, resnet20
from bitjax.quantizers import deployed
from bitjax.variables import nest, write_site
from tests.export.test_deploy import INPUTS, KERNELS
from tests.export.test_forms import SHAPE, drawn

X = jax.random.uniform(jax.random.key(0), (3, *SHAPE[:-1]))
AFFINE = deployed.affine("offset", "symmetric")


class Side(nn.Module):
    """Layers of one shape beside each other, and what else a model may hold."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        layers = [nn.DenseGeneral(SHAPE[-1], axis=(-2, -1), name=name) for name in self.names]
        x = sum(nn.relu(layer(x)) for layer in layers)
        x = nn.BatchNorm(use_running_average=True, param_dtype=jnp.bfloat16, name="norm")(x)
        self.variable("counts", "calls", lambda: jnp.uint32(2**32 - 1))
        return nn.Dense(3, name="float")(x)


def made_by_hand():
    """A deployed model with a kernel of every form and some inputs, which compiles nothing."""
    of_kernel = {"_".join(filter(None, form)): form for form in forms.FORMS}
    model, chosen, draw = Side(tuple(of_kernel)), {}, np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    variables = jax.tree.map(lambda s: draw.normal(size=s.shape).astype(s.dtype), shapes)
    quant, codes = {}, {}
    for i, (name, form) in enumerate(of_kernel.items()):
        leaves, codes[f"{name}/kernel"] = drawn(form, (1, 3, 4) if i % 3 else ())
        variables["params"][name]["kernel"] = forms.levels_of(form, leaves, codes[f"{name}/kernel"])
        quant[name] = {"kernel": leaves}
        chosen[f"{name}/kernel"] = forms.quantizer_of(form)
    bits, one = np.float32(2), np.float32(1)
    edges = np.array([-0.5, 0.5, np.inf], np.float32)
    inputs = {
        "table": (deployed.table(), {"levels": edges[[0, 0, 1, 1]], "edges": edges}),
        "offset_narrow": (AFFINE, {"scale": one, "edges": edges}),
        "offset_stored": (AFFINE, {"scale": one, "rate": one}),
    }
    for name, (quantizer, leaves) in inputs.items():
        quant[name]["input"], chosen[f"{name}/input"] = {"bits": bits, **leaves}, quantizer
    fixed = bj.Deployed(bj.Quantized(model, exact_rules(chosen)), {**variables, "quant": quant})
    return fixed, codes


@pytest.fixture(scope="module")
def made():
    return made_by_hand()


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    return path, bj.save_packed(path, made[0], X, about={"mean": (0.5,), "notes": {"top1": 0.9}})


def same_bits(one, other):
    def same(a, b):
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return all(jax.tree.leaves(jax.tree.map(same, one, other)))


def forms_by_site(model):
    pairs = [(rule.pattern.split("|"), forms.form_of(rule.quantizer)) for rule in model.rules]
    return {site: form for sites, form in pairs for site in sites}


def test_what_is_read_is_what_was_saved_bit_for_bit(made, saved):
    (model, variables), about = bj.load_packed(saved[0], made[0].model)
    assert same_bits(variables, made[0].variables)
    assert forms_by_site(model) == forms_by_site(made[0].model)
    assert about == {"input_shape": [2, 6], "input_dtype": "float32", "mean": [0.5],
                     "notes": {"top1": 0.9}}  # fmt: skip


def test_the_payload_is_what_model_bytes_counts(made, saved):
    (path, size), costs = saved, bj.site_costs(made[0].model.model, X)
    assert size.payload == math.ceil(bj.model_bytes(made[0].variables, costs))
    assert size.payload + size.header == path.stat().st_size


def test_the_library_of_the_format_reads_the_file(saved):
    with safe_open(saved[0], "np") as file:
        assert file.metadata()["format"] == "bitjax-packed"
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118  no dict
    assert sum(sizes.values()) == saved[1].payload


def test_the_same_model_gives_the_same_file(made, saved, tmp_path):
    about = {"notes": {"top1": np.float64(0.9)}, "mean": np.float32([0.5])}
    bj.save_packed(tmp_path / "again", made[0], X, about=dict(reversed(about.items())))
    assert (tmp_path / "again").read_bytes() == saved[0].read_bytes()


def by_zeros(module, x):
    """A deployed model of 4 bits everywhere, whose kernels and everything else are zeros."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    sites = bj.site_costs(module, x)
    leaves = {"bits": np.float32(4), "scale": np.float32(1)}
    quant = nest(dict.fromkeys(sites, leaves))
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    model = bj.Quantized(module, exact_rules(dict.fromkeys(sites, AFFINE)))
    return bj.Deployed(model, {**variables, "quant": quant})


def test_the_header_of_resnet20_takes_at_most_a_twentieth_of_the_payload(tmp_path):
    data = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "max_value": 255.0}
    about = {**data, "classes": ["airplane"] * 10, "task": "classification", "commit": "f" * 40}
    x = np.zeros((1, 32, 32, 3), np.float32)
    size = bj.save_packed(tmp_path / "resnet20", by_zeros(resnet20(), x), x, about=about)
    assert size.header <= 0.05 * size.payload


def test_a_model_of_bitjax_is_made_again_and_any_other_is_asked_for(made, saved, tmp_path):
    module, x = MLP((8,), dtype=jnp.bfloat16), np.zeros((1, 3), np.float32)
    fixed = by_zeros(module, x)._replace()
    bj.save_packed(tmp_path / "mlp", fixed, x)
    found = bj.load_packed(tmp_path / "mlp").deployed.model
    assert (found.model.features, found.model.dtype) == ((8,), "bfloat16")
    assert forms_by_site(found) == forms_by_site(fixed.model)
    with pytest.raises(FileError, match=r"is of the model '.*:Side', whose code is not imported"):
        bj.load_packed(saved[0])
    wrapped = bj.load_packed(saved[0], bj.Quantized(made[0].model.model)).deployed.model
    assert forms_by_site(wrapped) == forms_by_site(made[0].model)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("null", "names no model"),
        ('{"class":"os:system","arguments":{"command":"id"}}', "whose code is not imported"),
        ('{"class":"bitjax.models.mlp:os","arguments":{}}', "whose code is not imported"),
        ('{"class":"bitjax.models:load_resnet","arguments":{}}', "which bitjax.models has not"),
        ('{"class":"bitjax.models:MLP","arguments":{"parent":null}}', "does not take"),
        ('{"class":"bitjax.models:MLP","arguments":null}', "fields that are no plain values"),
        ('{"class":"bitjax.models:MLP","arguments":{"features":[1e9]}}', "at most 65536"),
        ('{"class":"bitjax.models:MLP","arguments":{"features":"a"}}', "that MLP refuses"),
        ('{"class":"bitjax.models:MLP","arguments":{},"calls":"none"}', "that MLP refuses"),
    ],
)
def test_a_file_names_no_code_that_would_run(saved, tmp_path, spec, said):
    path = rewritten(saved[0], tmp_path, model=spec)
    with pytest.raises(FileError, match=said) as caught:
        bj.load_packed(path)
    assert str(caught.value).endswith("pass the model as `model=`.")


def parts_of(path):
    """The header of a file, its index, and its data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["index"]), content[8 + length :]


def put_together(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def rewritten(path, folder, **metadata):
    """A copy with other texts in its metadata."""
    header, _, data = parts_of(path)
    header["__metadata__"] |= metadata
    return put_together(folder / "other.safetensors", header, data)


def kernel(index, form):
    """The group of the first kernel of a form."""
    number = index["forms"].index(form)
    return next(group for group in index["kernels"] if group["form"] == number)


def put(index, key, **changes):
    index[key][0] |= changes


LIES = {
    "lists a leaf twice": lambda i: put(i, "bits", at=[9] * len(i["bits"][0]["at"])),
    "points out of the tree": lambda i: i["paths"].__setitem__(0, "../../etc"),
    "is absolute": lambda i: i["paths"].__setitem__(0, "/etc"),
    "is empty": lambda i: i["paths"].__setitem__(0, ""),
    "moves the cursor": lambda i: i["paths"].__setitem__(0, "\x1b[2J"),
    "lies in another leaf": lambda i: put(i, "floats", names=["*", "*/x"], shape=[4]),
    "names too much": lambda i: put(i, "floats", at=[0] * 100_001),
    "is longer than the data": lambda i: put(i, "floats", shape=[2**40]),
    "is shorter than the data": lambda i: put(i, "floats", shape=[0]),
    "is of no size": lambda i: put(i, "floats", shape=[-1]),
    "overflows": lambda i: put(i, "kernels", shape=[2**47] * 32),
    "is a kernel beyond memory": lambda i: put(i, "kernels", shape=[2**40, 6, 4]),
    "has no form": lambda i: put(i, "kernels", form=99),
    "has a form of another time": lambda i: i["forms"][0].update(coding="golden"),
    "has other leaves than its form": lambda i: i["inputs"].reverse() or put(i, "inputs", form=1),
    "leaves a site out": lambda i: i["inputs"].pop(),
    "is at no layer": lambda i: put(i, "kernels", at=[99]),
    "has keys of its own": lambda i: i.update(code="import os"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused_in_one_line(made, saved, tmp_path, lie):
    _, index, _ = parts_of(saved[0])
    LIES[lie](index)
    path = rewritten(saved[0], tmp_path, index=json.dumps(index))
    with pytest.raises(
        FileError, match=r"other\.safetensors is damaged \(.*copy it again"
    ) as caught:
        bj.load_packed(path, made[0].model)
    print(lie, "|", caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_numbers_that_a_site_cannot_have_are_refused(made, saved, tmp_path):
    header, _, data = parts_of(saved[0])
    scale = made[0].variables["quant"]["offset_narrow"]["kernel"]["scale"]
    codes, bits = (header[name]["data_offsets"][0] for name in ("codes", "bits"))
    beyond = (len(data) - codes) * b"\xff"  # codes are the last array
    for at, found, said in (
        (data.find(scale.tobytes()), np.float32(np.nan), "has a 'scale' that is no number"),
        (data.find(scale.tobytes()), np.float32(-1), "has a scale below 0"),
        (bits, np.zeros(codes - bits, np.uint8), "its codes take .* bits, and .* bytes are there"),
        (bits, np.uint8(17), "has bits beyond 0 to 16"),
        (codes, np.frombuffer(beyond, np.uint8), "code .* stands for no integer"),
    ):
        wrong = data[:at] + found.tobytes() + data[at + found.nbytes :]
        path = put_together(tmp_path / "wrong", header, wrong)
        with pytest.raises(FileError, match=f"wrong is damaged .*{said}"):
            bj.load_packed(path, made[0].model)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"std_": [1.0]}, "`about` has no key 'std_', only .*; did you mean 'std'"),
        ({"std": [0.0]}, "`std` must be a list, each a finite number above 0, got"),
        ({"task": "a\x1b[2J"}, "`about` must hold lines of printable text"),
        ({"notes": {"f": len}}, "`about` must be what JSON holds: a builtin_function_or_method"),
        ({"notes": {"loss": math.nan}}, "`about` must be what JSON holds: "),
    ],
)
def test_what_cannot_be_said_of_a_model_is_refused_before_anything_is_written(
    made, tmp_path, about, said
):
    with pytest.raises(ValueError, match=said):
        bj.save_packed(tmp_path / "file", made[0], X, about=about)
    assert not list(tmp_path.iterdir())


def changed(made, path, leaf):
    """The hand-made model with another leaf."""
    return made[0]._replace(variables=write_site(made[0].variables, path, leaf))


@pytest.mark.parametrize(
    ("path", "leaf", "said"),
    [
        ("params/offset_narrow/kernel", np.full(SHAPE, 0.3, np.float32), "not lie on its levels"),
        ("counts/calls", np.complex64(1j), "is of dtype complex64, which takes more than 32 bits"),
        ("counts", {"calls": np.uint32(0), "more": [1.0]}, "is a list, where a dict or an array"),
        ("counts", {"calls": np.uint32(0), "a/b": X}, "counts has the key 'a/b', which is no name"),
        ("counts", {"calls": np.uint32(0), "..": X}, "'counts/..' is no name of a leaf"),
    ],
)
def test_variables_that_no_file_can_hold_are_refused(made, tmp_path, path, leaf, said):
    with pytest.raises(ValueError, match=said) as caught:
        bj.save_packed(tmp_path / "file", changed(made, path, leaf), X)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_model_that_is_not_deployed_is_refused(made):
    with pytest.raises(ValueError, match="`deployed` must be a Deployed, got .*; bitjax.deploy"):
        bj.save_packed("file", made[0].model, X)
    trained = made[0].model.with_rules([bj.rule(".*", bj.lsq(4))])
    with pytest.raises(
        ValueError, match="cannot be packed: 'offset_narrow/input' is not deployed; give"
    ):
        bj.save_packed("file", bj.Deployed(trained, made[0].variables), X)


def test_a_save_that_fails_leaves_the_old_file(made, saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved[0].read_bytes())
    with pytest.raises(ValueError, match="does not lie on its levels"):
        bj.save_packed(path, changed(made, "params/offset_narrow/kernel", np.full(SHAPE, 0.3)), X)
    assert path.read_bytes() == saved[0].read_bytes() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"format": "pt"}, "is a safetensors file, but no packed model; give one that"),
        ({"version": "2"}, r"is of version 2 of the format, and bitjax .* reads 1; update bitjax"),
        ({"version": "one"}, r"is damaged \(its version is no number\)"),
        ({"about": '{"mean":[NaN]}'}, "is damaged"),
    ],
)
def test_a_file_of_another_kind_or_time_says_so(made, saved, tmp_path, told, said):
    with pytest.raises(FileError, match=f"^{tmp_path}/other.safetensors {said}"):
        bj.load_packed(rewritten(saved[0], tmp_path, **told), made[0].model)


def by_training():
    """Every quantizer of the tests as a kernel's and as an input's, and one with mixed bits."""
    kernels = {f"k_{name.replace(' ', '_')}": quantizer for name, quantizer in KERNELS.items()}
    inputs = {f"i_{name.replace(' ', '_')}": quantizer for name, quantizer in INPUTS.items()}
    mixed = bj.freeze(bj.bitlength(4.0, granularity="per_channel", zero_on_grid=True))
    rules = [bj.rule(f"{name}/kernel", q) for name, q in {**kernels, "mixed": mixed}.items()]
    rules += [bj.rule(f"{name}/input", q) for name, q in inputs.items()]
    net = bj.Quantized(Side(("mixed", *kernels, *inputs)), rules)
    variables = jit_arrays(net.init, jax.random.key(1), X, **compile_quickly())
    bits = {"mixed/kernel": jnp.array([[[2, 3, 5, 7]]])}
    return bj.deploy(net, bj.with_bits(variables, bits), X)


ELSEWHERE = """
import sys, jax, numpy as np, bitjax as bj
from tests.export.test_packed import Side, X
names, path, out = sys.argv[1].split(","), *sys.argv[2:]
net, variables = bj.load_packed(path, Side(tuple(names))).deployed
leaves = jax.tree.leaves(variables)
np.savez(out, logits=jax.jit(net.apply)(variables, X), *[np.ravel(x).view("u1") for x in leaves])
"""


@pytest.mark.slow
def test_another_process_reads_every_quantizer_and_computes_the_same_bits(tmp_path):
    net, variables = by_training()
    path, out = tmp_path / "model.safetensors", tmp_path / "found.npz"
    size = bj.save_packed(path, bj.Deployed(net, variables), X)
    costs = bj.site_costs(net.model, X)
    assert size.payload == math.ceil(bj.model_bytes(variables, costs))
    command = [sys.executable, "-c", ELSEWHERE, ",".join(net.model.names), path, out]
    subprocess.run(command, check=True)
    with np.load(out) as found:
        logits = found["logits"]
        leaves = [found[f"arr_{i}"].tobytes() for i in range(len(found.files) - 1)]
    assert leaves == [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)]
    assert logits.tobytes() == np.asarray(jax.jit(net.apply)(variables, X)).tobytes()
