"""A language model's run goes on with a text, beside the float model that it started from."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from rich.console import Console

import bitjax as bj
from bitjax.cli.inspect import side_by_side
from bitjax.data import decode, load, token_dataset
from bitjax.launch.continuation import continue_text
from bitjax.launch.finished import Finished
from bitjax.methods import full_precision
from bitjax.models import Llama
from bitjax.training.work import make_work

MODEL = Llama(vocab_size=5, width=8, layers=1, heads=2, kv_heads=1, hidden=8, context=12)
STREAM = np.array([0, 1, 2, 3, 0, 4, 4, 1, 2, 3, 1, 2, 4])


@pytest.fixture(scope="module")
def work():
    data = token_dataset(
        "own", STREAM, STREAM[4:], context=12, marker=0, pieces=["<s>", "a", "[b]", " c", "d"]
    )
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), np.ones((1, 2), int))
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(x.dtype), shapes)
    return make_work(full_precision(steps=0), MODEL, data, start)


def said(work, model, variables):
    """Half a context of the first evaluation text, and what follows it."""
    prompt = STREAM[None, 4:10]
    return decode(work.dataset, np.asarray(bj.generate(model, variables, prompt, 6))[0, 6:])


def test_float_and_quantized_go_on_with_the_first_evaluation_text(work, tmp_path):
    trained = jax.tree.map(lambda x: x[..., ::-1], work.start)
    model = bj.Quantized(MODEL, [bj.rule(".*/wq/kernel", bj.uniform(bits=2))])
    variables = bj.attach(model, trained, STREAM[None, 4:10])
    finished = Finished(work, model, variables)
    found = continue_text(finished, "")
    assert found is not None and found.prompt == "dda[b] c"
    quantized = said(work, model, variables)
    assert found.texts == {"float": said(work, MODEL, trained), "quantized": quantized}

    flat = jax.tree_util.tree_leaves_with_path(work.start)
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    np.savez(tmp_path / "start.npz", **names)
    found = continue_text(finished, str(tmp_path / "start.npz"))
    at_start = said(work, MODEL, work.start)
    assert found is not None and at_start != found.texts["quantized"] == quantized
    assert found.texts["float, at its start"] == at_start
    console = Console(width=60)
    with console.capture() as shown:
        console.print(side_by_side(found))
    lines = shown.get().splitlines()
    assert lines[0].strip() == "after: dda[b] c"
    assert any("float, at its start" in line and "quantized" in line for line in lines)
    assert any(at_start.strip() in line and quantized.strip() in line for line in lines)


def test_of_a_float_run_the_trained_model_goes_on(work):
    float_run = Finished(work, bj.Quantized(MODEL), work.start)
    found = continue_text(float_run, "moved/since.npz")
    assert found is not None and found.texts == {"trained": said(work, MODEL, work.start)}


def test_what_is_no_language_model_with_a_cache_goes_on_with_nothing(work):
    images = work._replace(dataset=load("digits"))
    assert continue_text(Finished(images, bj.Quantized(MODEL), work.start), "") is None
    other = work._replace(model=bj.models.MLP())
    assert continue_text(Finished(other, bj.Quantized(MODEL), work.start), "") is None


class Unfinished(nn.Module):
    def __call__(self, tokens, decode=False):
        raise NotImplementedError("not yet")


def test_a_model_that_fails_with_a_cache_is_said_in_one_line(work):
    other = work._replace(model=Unfinished())
    message = "the model called with decode=True: NotImplementedError: not yet .*test_continuation"
    with pytest.raises(ValueError, match=message) as error:
        continue_text(Finished(other, bj.Quantized(other.model), {}), "")
    assert "\n" not in str(error.value)
