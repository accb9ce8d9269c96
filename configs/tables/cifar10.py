"""Tables on CIFAR-10. `cifar10-resnet20` is made for a CPU: two hours on 2 cores.

python -m experiments.reproduce cifar10-resnet20
python -m experiments.reproduce cifar10-resnet20-solved    # without training
python -m experiments.reproduce cifar10-resnet20-planes    # without training
python -m experiments.reproduce cifar10-resnet8-solved     # a float training, then without
python -m experiments.reproduce cifar10-resnet20-long      # two hours on 2 cores
python -m experiments.reproduce cifar10-vgg-small-w32      # a quarter of the width, short schedules
python -m experiments.reproduce cifar10-vgg-small          # accelerator
"""

from bitjax.configs.cifar10.resnet8_projected import POINTS as PROJECTED
from bitjax.configs.cifar10.resnet20_250 import POINTS
from bitjax.configs.cifar10.resnet20_long import POINTS as LONG_POINTS
from bitjax.configs.cifar10.resnet20_planes import POINTS as PLANES
from bitjax.configs.cifar10.resnet20_solved import POINTS as UNTRAINED

RESNET_COLUMNS = ("loss", "kl", "bits_weights", "bits_activations", "model_bytes", "bops", "loom",
                  "bit_fusion", "steps", "wall_seconds")  # fmt: skip
UNTRAINED_COLUMNS = ("loss", "kl", "bits_weights", "bits_activations", "model_bytes", "bops",
                     "wall_seconds")  # fmt: skip
ONE_SEED = ("twn", "hwgq")
RESNET20 = "configs/cifar10/resnet20_250.py:{}".format
RESNET8 = "configs/cifar10/resnet8_projected.py:{}".format
VGG = "configs/cifar10/vgg_small_{}.py".format


def vgg_small(width):
    names = ("float", "hwgq", "twn_a2", "tsq_a2")
    return {
        "seeds": (0,),
        "configs": tuple(VGG(name) + width for name in names),
        "starts": {VGG("tsq_a2") + width: VGG("float") + width},
    }


TABLES = {
    "cifar10-resnet20": {
        "title": "Every method from the published ResNet-20 on CIFAR-10",
        "about": "From the published float weights, at most 250 steps of batch 128 with the float "
        "network as teacher, two operating points a method, first and last layer at 8 bits; "
        "`float_250` is the float network under the same 250 steps. Settings of BitPruning, "
        "TSQ and the bottleneck come from longer runs and were partly chosen on held-out images, "
        "which at 250 steps chose the rates at which scales and clips are learned; the other "
        "methods have BitPruning's rate. Bits are learned under the BOPs and the kernels' bytes of "
        "`uniform`. Calibration is in the seconds, not in the steps. KL: of the float network's "
        "classes from the model's, in nats.",
        "seeds": {
            RESNET20(point): (0,) if point.partition("_")[0] in ONE_SEED else (0, 1, 2)
            for point in POINTS
        },
        "configs": tuple(RESNET20(point) for point in POINTS),
        "baseline": "cifar10/resnet20_250/float_250",
        "distortion": (RESNET20("bottleneck_w8a4"),),
        "columns": RESNET_COLUMNS,
    },
    "cifar10-resnet20-long": {
        "title": "Few bits from the published ResNet-20 on CIFAR-10, trained for longer",
        "about": "From the published float weights, 2,000 steps of batch 128 with the float "
        "network as teacher, first and last layer at 8 bits; `float` is the float network under "
        "the same steps. Published on this architecture, of a better float network and in 300 "
        "epochs: 92.96 float, 92.45 at W4A4, 92.49 at W3A3 and 90.96 at W2A2 (APoT, arXiv "
        "1909.13144, by its authors' program): drops of 0.51, 0.47 and 2.00 points. Bits are "
        "learned under the BOPs and the kernels' bytes of `uniform_w3a3`.",
        "seeds": (0,),
        "configs": tuple(f"configs/cifar10/resnet20_long.py:{point}" for point in LONG_POINTS),
        "baseline": "cifar10/resnet20_long/float",
        "columns": RESNET_COLUMNS,
    },
    "cifar10-resnet20-solved": {
        "title": "The published ResNet-20 on CIFAR-10 without training",
        "about": "The 18 convolutions inside have the bits that are named, stem and head 8. All "
        "rows share 512 calibration images; the 10,000 test images judge, by top-1 and by KL, of "
        "the float network's classes from the model's in nats. `nearest` rounds, `gptq`, "
        "`adaround` and `solved` solve layer by layer. `t` is ternary. `measured` chooses bits of "
        "kernels and inputs, with solved kernels, within the bytes and BOPs that equal bits take.",
        "small": True,
        "seeds": (0,),
        "configs": tuple(f"configs/cifar10/resnet20_solved.py:{point}" for point in UNTRAINED),
        "baseline": "cifar10/resnet20_solved/float",
        "columns": UNTRAINED_COLUMNS,
    },
    "cifar10-resnet20-planes": {
        "title": "What allocated bit-planes add to equal ones, ResNet-20 on CIFAR-10",
        "about": "Without training, kernels, stem and head at 8 bits. `a3`: 3 bits on average over "
        "the inputs of the 18 convolutions inside, which `bottleneck` spreads over them by what an "
        "error costs the loss, and `uniform` gives to each, in scales of least squared error; "
        "at 2.5 it gives 3 to the first and 2 to the second of a block. Both see the same 1,024 "
        "training images, whatever the seed. KL: of the float network's classes from the model's, "
        "in nats.",
        "small": True,
        "seeds": (0,),
        "configs": tuple(f"configs/cifar10/resnet20_planes.py:{point}" for point in PLANES),
        "baseline": "cifar10/resnet20_planes/float",
        "columns": UNTRAINED_COLUMNS,
    },
    "cifar10-resnet8-solved": {
        "title": "A ResNet-8 with projected shortcuts on CIFAR-10, ternary without training",
        "about": "20 epochs from scratch make the float network; the others start from it, with "
        "ternary kernels inside, stem and head at 8 bits, solved from 512 images. The 10,000 test "
        "images judge, by top-1 and by KL, of the float network's classes from the model's in "
        "nats. Settings are those of `cifar10-resnet20-solved`.",
        "small": True,
        "seeds": (0,),
        "configs": tuple(RESNET8(point) for point in PROJECTED),
        "starts": {RESNET8(point): RESNET8("float") for point in PROJECTED if point != "float"},
        "baseline": "cifar10/resnet8_projected/float",
        "columns": UNTRAINED_COLUMNS,
    },
    "cifar10-vgg-small": {
        "title": "Low-bit VGG-small on CIFAR-10",
        "about": "200 epochs from scratch; two-step quantization starts from the float run.",
        "accelerator": True,
        **vgg_small(""),
    },
    "cifar10-vgg-small-w32": {
        "title": "Low-bit VGG-small on CIFAR-10, a quarter of its width",
        "about": "1,000 steps from scratch; two-step quantization starts from the float run.",
        **vgg_small(":w32"),
    },
}
