"""Every method and baseline on the digits, ten seeds. Command (20 minutes on 2 cores):

python -m experiments.reproduce digits
"""

METHODS = (
    *("float.py", "uniform.py", "lsq.py", "pact.py", "hwgq.py", "twn.py"),
    *("bitpruning.py:costs", "tsq.py", "bottleneck.py"),
)
TABLES = {
    "digits": {
        "title": "Every method on the digits",
        "about": "A small CNN on scikit-learn's digits, trained from scratch: 1,200 steps of one "
        "schedule for every method. Bits are learned under the BOPs and the kernels' bytes of "
        "`uniform`.",
        "small": True,
        "seeds": tuple(range(10)),
        "configs": tuple(f"configs/digits/{name}" for name in METHODS),
    }
}
