"""What is wrong with an experiment's command line is one line, before it trains or measures."""

import pytest

from experiments import draw, rate_distortion, reproduce, screenshots, tabulate, tsq_ablation


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (rate_distortion.main, [], "name a config, such as digits/bitpruning"),
        (rate_distortion.main, ["digits/float"], "the config has no site with a `bitplane` quanti"),
        (
            rate_distortion.main,
            ["digits/float", "--max_bits=9"],
            r"an integer in \[1, 8\], got '9'",
        ),
        (rate_distortion.main, ["digits/float", "--batches=many"], "--batches: must be an integer"),
        (rate_distortion.main, ["digits/float", "--out=/no/x.png"], "in a folder that is there"),
        (rate_distortion.main, ["digits/float", "--out=x.doc"], "must end in one of .png .pdf .s"),
        (rate_distortion.main, ["digits/float", "--config.sed=1"], "no key 'sed'"),
        (tsq_ablation.main, ["digits/float"], "config.method.name must be 'tsq' for this, got 'fu"),
        (tsq_ablation.main, ["digits/tsq", "--held_out=0"], "--held_out: must be an integer in"),
        (tsq_ablation.main, ["digits/tsq", "--nope"], r"unknown arguments \['--nope'\]"),
        (tsq_ablation.main, ["digits/tsq", "--config.method.ridge=-1"], "no key 'method.ridge'"),
        (draw.main, ["digits/float", "--out=x.npz"], "must be tokens with a marker of docum"),
        (draw.main, ["stories/float"], "--out"),
        (reproduce.main, ["digits", "--slots=-1"], "--slots: must be an integer in"),
        (
            reproduce.main,
            ["digits", "--seeds=100000"],
            r"--seeds: must be an integer in \[0, 1000\]",
        ),
        (screenshots.main, ["--out=no/such"], "a folder that is there, got 'no/such'"),
        (tabulate.main, ["--nope"], r"unknown arguments \['--nope'\]"),
        (tabulate.main, ["no/such/run"], "no/such/run does not exist: run its config"),
    ],
    ids=lambda given: getattr(given, "__module__", str(given)),
)
def test_a_wrong_command_line_is_refused_in_one_line(main, words, message):
    with pytest.raises(ValueError, match=message) as refused:
        main(words)
    assert "\n" not in str(refused.value)
