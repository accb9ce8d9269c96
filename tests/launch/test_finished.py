"""What a finished run's folder gives back is the model that its result was measured on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.launch.build import build_work, open_folder
from bitjax.launch.finished import load_run
from bitjax.launch.schema import check_sections, completed, plain
from bitjax.rules import quantizer_of
from bitjax.runs.folder import open_run
from bitjax.training.runner import run
from bitjax.variables import read_site
from configs.digits.lsq import get_config


@pytest.mark.slow
def test_the_loaded_model_has_the_runs_accuracy_and_its_integer_codes(tmp_path):
    config = get_config()
    config.model = {"name": "mlp", "num_classes": 10, "features": (16,)}
    config.method.steps = 30
    config.rules = ((".*", {"name": "lsq", "bits": 3}),)
    work = build_work(config, source="configs/digits/lsq.py")
    result, _ = run(work, open_folder(config, tmp_path / "run"), show=False)

    loaded, model, variables = load_run(tmp_path / "run")
    data = loaded.dataset
    logits = model.apply(variables, loaded.preprocess(None, jnp.asarray(data.eval_images)))
    assert jnp.mean(jnp.argmax(logits, -1) == data.eval_labels) == pytest.approx(result["accuracy"])
    quantizer = quantizer_of(model.rules, "dense1/kernel")
    params, kernel = (read_site(variables[c], "dense1/kernel") for c in ("quant", "params"))
    codes = jax.jit(quantizer.encode)(params, {}, kernel)
    assert len(np.unique(codes.codes)) == 8 == 2 ** int(params["bits"])
    x_hat = jax.jit(lambda *a: quantizer.apply(*a))(params, {}, kernel)
    np.testing.assert_array_equal(jax.jit(quantizer.decode)(params, {}, codes), x_hat)


def test_a_config_of_an_older_version_is_read_with_the_defaults_of_later_keys():
    spec = plain(get_config())
    old = {**spec, "data": {**spec["data"]}}
    del old["sums"], old["data"]["eval_split"]
    assert check_sections(completed(old)) == spec
    # A model's and a method's keys are their own: of these nothing is filled in.
    old["model"] = {"name": "mlp"}
    assert completed(old)["model"] == {"name": "mlp"}


def test_a_folder_without_weights_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*checkpoints, and it holds the weights"):
        load_run(tmp_path)


def test_a_damaged_config_is_one_line_that_names_the_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{'")
    for read in (load_run, lambda folder: open_run(folder, {}, True)):
        with pytest.raises(
            ValueError, match=r"is damaged: config.json is not JSON \(.*: restore"
        ) as e:
            read(tmp_path)
        assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow
def test_checkpoints_of_another_run_are_not_taken_for_those_of_the_config(tmp_path):
    config = get_config()
    config.model = {"name": "mlp", "num_classes": 10, "features": (4,)}
    config.method.steps, config.rules = 0, ((".*", {"name": "lsq", "bits": 3}),)
    work = build_work(config)
    run(work, open_folder(config, tmp_path / "run"), show=False)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
    with pytest.raises(ValueError, match="of another run than the config.json beside them") as e:
        load_run(tmp_path / "run")
    assert work.facts["config_hash"] in str(e.value)
