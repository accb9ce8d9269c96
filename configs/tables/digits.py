"""Every method and baseline on the digits, three seeds. Command (6 minutes on 2 cores):

python -m experiments.reproduce digits
"""

METHODS = "float uniform lsq pact hwgq twn bitpruning tsq bottleneck".split()
TABLES = {
    "digits": {
        "title": "Every method on the digits",
        "about": "A small CNN on scikit-learn's digits, trained from scratch: 1,200 steps of one "
        "schedule for every method.",
        "small": True,
        "seeds": (0, 1, 2),
        "configs": tuple(f"configs/digits/{name}.py" for name in METHODS),
    }
}
