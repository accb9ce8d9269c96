"""Each method's headline on ImageNet, with the float run that it starts from. Accelerator.

python -m experiments.reproduce imagenet-resnet18
"""


def headline(model, start, *quantized):
    """A float run and what is quantized from it."""
    return {
        "title": f"{model} on ImageNet",
        "about": "The float network and what was quantized from it; see the configs' headings for "
        "what the papers report.",
        "accelerator": True,
        "seeds": (0,),
        "configs": (start, *quantized),
        "starts": dict.fromkeys(quantized, start),
    }


FLOAT, BITS, CODES, PLANES = (
    f"configs/imagenet/{name}.py" for name in ("float", "bitpruning", "tsq", "bottleneck")
)
ALEXNET = headline("AlexNet", f"{FLOAT}:alexnet_torch", f"{BITS}:alexnet_torch")
ALEXNET_BN = headline("AlexNet-BN", f"{FLOAT}:alexnet", f"{CODES}:alexnet")
RESNET18 = headline("ResNet-18", f"{FLOAT}:resnet18", f"{BITS}:resnet18")
MOBILENET = headline("MobileNetV2", f"{FLOAT}:mobilenet_v2", f"{BITS}:mobilenet_v2")
RESNET50 = headline("ResNet-50", f"{FLOAT}:resnet50", f"{PLANES}:4", f"{PLANES}:5")
VGG16 = headline("VGG-16", f"{FLOAT}:vgg16", f"{CODES}:vgg16")
TABLES = {
    "imagenet-alexnet": ALEXNET,
    "imagenet-alexnet-bn": ALEXNET_BN,
    "imagenet-mobilenet-v2": MOBILENET,
    "imagenet-resnet18": RESNET18,
    "imagenet-resnet50": RESNET50,
    "imagenet-vgg16": VGG16,
}
