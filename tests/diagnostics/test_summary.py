"""The table of sites: its numbers, its totals and what it says of what is not reached."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bitjax.diagnostics.summary import site_rows, summary
from bitjax.frameworks.attach import attach
from bitjax.frameworks.costs import site_costs
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.plain import Function
from bitjax.models.mlp import MLP
from bitjax.quantizers.bitlength import bitlength
from bitjax.quantizers.uniform import uniform
from bitjax.rules import rule

X = jax.random.normal(jax.random.key(1), (2, 32))
FLOAT = MLP(features=(64,)).init(jax.random.key(0), X)
RULES = [
    rule("head/.*", None),
    rule("dense1/kernel", bitlength(init=3.0, granularity="per_channel")),
    rule("dense1/input", uniform(bits=4)),
]
MODEL = Quantized(MLP(features=(64,)), RULES)
VARIABLES = attach(MODEL, FLOAT, X)
VARIABLES["quant"]["dense1"]["kernel"]["bits"] = jnp.linspace(2.0, 5.0, 64).reshape(1, 64)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(text):
    return {" ".join(line.split()) for line in text.splitlines()}


def test_every_site_has_a_row_with_its_quantizer_bits_and_cost():
    rows = {row.site: row for row in site_rows(MODEL, VARIABLES, site_costs(MODEL, X))}
    kernel = rows["dense1/kernel"]
    assert (kernel.quantizer, kernel.granularity) == ("bitlength/blend", "per_channel")
    assert (kernel.elements, kernel.macs, kernel.bytes) == (2048, 2048, 2048 * 3.5 / 8)
    assert rows["dense1/input"].bytes == 32 * 4 / 8
    assert rows["head/kernel"].quantizer == "float" and rows["head/kernel"].bytes == 2560
    shares = [row.bops_share for row in rows.values() if row.bops_share is not None]
    bops = {"dense1": 2048 * 3.5 * 4, "head": 640 * 32 * 32}
    assert shares == pytest.approx([b / sum(bops.values()) for b in bops.values()])


def test_the_table_is_plain_text_that_fits_in_100_columns():
    out = io.StringIO()
    text = summary(MODEL, VARIABLES, X, file=out)
    assert out.getvalue() == text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    found = lines(text)
    assert "dense1/kernel bitlength/blend 3.5 (2-5) channel 2,048 2.05 k 896 B 4.2 %" in found
    assert "head/input float 32 64 256 B" in found
    assert "bits on average weights 17.75 activations 18.00 all 17.88 inner layers -" in found
    assert "kernels 3.4 kB of 10.5 kB in float32" in found
    assert any(line.startswith("model 4.2 kB of 10.8 kB") for line in found)
    assert "activations 272 B of 384 B in float32" in found
    assert any(line.startswith("MACs 2.69 k") for line in found)
    assert "not reached" not in text


def test_a_terminal_gets_the_same_table_in_colour(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    text = summary(MODEL, VARIABLES, X, file=out)
    assert "\x1b" not in text and "\x1b[1m" in out.getvalue()
    assert all(line.split()[0] in out.getvalue() for line in text.splitlines() if line)


def test_a_notebook_shows_the_table_as_one_output_and_gets_the_same_text(monkeypatch, capsys):
    wanted = summary(MODEL, VARIABLES, X, file=io.StringIO())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    file = io.StringIO()
    assert summary(MODEL, VARIABLES, X, file=file) == wanted == file.getvalue() and not shown
    assert summary(MODEL, VARIABLES, X) == wanted
    assert len(shown) == 1 and "bits on average" in shown[0]
    assert not capsys.readouterr().out


def test_a_float_model_has_a_table_too():
    text = summary(MLP(features=(64,)), FLOAT, X, file=io.StringIO())
    assert "kernels 10.5 kB" in lines(text) and "times smaller" not in text
    # Quantizers' variables beside a float model cost nothing and do nothing.
    assert summary(MLP(features=(64,)), VARIABLES, X, file=io.StringIO()) == text


def test_long_names_and_many_classes_stay_within_100_columns():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="a_rather_long_name_of_a_layer_" * 3)(x)

    text = summary(Deep(), Deep().init(jax.random.key(0), X), X, file=io.StringIO())
    assert max(map(len, text.splitlines())) <= 100


def test_scanned_layers_are_counted():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(32, name="dense")(x), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "quant": 0, "quant_stats": 0}
            stack = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
            return stack(name="blocks")(x, None)[0]

    model = Quantized(Deep(), [rule(".*/kernel", bitlength(init=4.0))])
    variables = model.init(jax.random.key(0), X)
    variables["quant"]["blocks"]["dense"]["kernel"]["bits"] = jnp.array([2.0, 4.0, 6.0])
    text = summary(model, variables, X, file=io.StringIO())
    row = "blocks/dense/kernel (x3) bitlength/blend 4 (2-6) tensor 3,072 3.07 k 1.5 kB 100.0 %"
    assert row in lines(text)


def test_a_tensor_that_two_layers_read_is_marked():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8, name="left")(x) + nn.Dense(8, name="right")(x)

    text = summary(Net(), Net().init(jax.random.key(0), X), X, file=io.StringIO())
    assert "right/input float 32 32* 128 B" in lines(text)  # read by `left` already
    assert "* an earlier site reads the same tensor" in text


@jax.custom_vjp
def opaque(x, w):
    return x @ w


opaque.defvjp(lambda x, w: (x @ w, (x, w)), lambda rest, g: (g @ rest[1].T, rest[0].T @ g))


class Custom(nn.Module):
    @nn.compact
    def __call__(self, x):
        return opaque(x, self.param("kernel", nn.initializers.lecun_normal(), (32, 8)))


def test_what_is_not_reached_is_said_with_its_place_reason_and_share():
    class Net(nn.Module):
        places: int = 1

        @nn.compact
        def __call__(self, x):
            # Each of these two is a third of the work. A bias reaches no product and has no line.
            y = nn.Dense(8, name="dense")(x) + x @ jnp.eye(32, 8)
            return y + sum(Custom(name=f"raw{i}")(x) for i in range(self.places)) / self.places

    text = summary(Net(), Net().init(jax.random.key(0), X), X, file=io.StringIO())
    assert text.splitlines()[-3:] == [
        "not reached       512 MACs, 66.7 %",
        "  the model itself (constant), 33.3 %",
        "  raw0 (custom_vjp_call), 33.3 %",
    ]
    many = Net(places=6)
    text = summary(many, many.init(jax.random.key(0), X), X, file=io.StringIO())
    assert len(text.partition("not reached")[2].splitlines()) == 6
    assert text.splitlines()[-1] == "  3 more, 37.5 %"


def test_a_plain_function_has_a_table_with_both_sides_of_its_products():
    def attend(params, x):
        return (x @ params["q"]["w"]) @ jnp.swapaxes(x, 1, 2)

    x = jnp.ones((2, 5, 4))
    net = Function(attend, [rule("q/.*", uniform(bits=4))])
    variables = {"params": {"q": {"w": jnp.ones((4, 4))}}}
    text = summary(net, attach(net, variables, x), x, file=io.StringIO())
    assert "q/kernel uniform 4 tensor 16 80 8 B 1.2 %" in lines(text)
    assert "product0/right float 32 20* 100 80 B 98.8 %" in lines(text)
    assert "not reached" not in text


def test_a_site_without_variables_is_an_error():
    with pytest.raises(ValueError, match="'dense1/kernel' has no 'quant' variables.*attach"):
        summary(MODEL, FLOAT, X, file=io.StringIO())
