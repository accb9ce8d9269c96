"""Every method from the published ResNet-20 on CIFAR-10, two operating points, at most 250 steps.

Command (less than 3 hours on 2 cores; stop it at any time, the same command goes on):
  python -m experiments.reproduce cifar10-resnet20
"""

from configs.cifar10.resnet20_250 import POINTS


def get_table():
    return {
        "title": "Every method from the published ResNet-20 on CIFAR-10",
        "about": "From the published float weights (91.73 %), at most 250 steps of batch 128 with "
        "the float network as teacher; first and last layer at 8 bits. `float_250` is the float "
        "network under the same 250 steps. No setting was chosen for this table.",
        "seeds": (0,),
        "configs": [f"configs/cifar10/resnet20_250.py:{point}" for point in POINTS],
        "baseline": "cifar10/resnet20_250/float_250",
    }
