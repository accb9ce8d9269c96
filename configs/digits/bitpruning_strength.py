"""BitPruning on the digits with a soft penalty in place of a budget: what a strength buys.

The paper's own form (arXiv 2002.03090): gamma times the average bitlength is added to the loss, and
bits are rounded up. `sweep_strengths` draws accuracy against bits; strengths and seeds are in the
state, so that all its runs can be rows of one program. Command:
  bitjax sweep digits/bitpruning_strength --sweep strengths \\
      --workdir runs/digits-strengths --vectorize
"""

from bitjax.configs.digits.bitpruning import get_config as budgeted


def get_config():
    config = budgeted()
    config.method.gamma = 0.1
    config.method.rounding = "ceil"
    config.budgets = ()
    return config


def sweep_strengths():
    return [{"method.gamma": gamma} for gamma in (0.01, 0.03, 0.1, 0.3, 1.0)]


def sweep_seeds():
    return [{"seed": seed} for seed in range(5)]
