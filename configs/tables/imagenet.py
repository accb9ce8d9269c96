"""Each method's headline on ImageNet, with the float run that it starts from. Accelerator.

python -m experiments.reproduce imagenet-resnet18
"""

CONFIG = "configs/imagenet/{}.py".format


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


ALEXNET = headline("AlexNet", CONFIG("alexnet_torch_float"), CONFIG("alexnet_bitpruning"))
ALEXNET_BN = headline("AlexNet-BN", CONFIG("alexnet_float"), CONFIG("alexnet_tsq"))
RESNET18 = headline("ResNet-18", CONFIG("resnet18_float"), CONFIG("resnet18_bitpruning"))
MOBILENET = headline("MobileNetV2", CONFIG("mobilenet_v2_float"), CONFIG("mobilenet_v2_bitpruning"))
PLANES = CONFIG("resnet50_bottleneck_a4")
RESNET50 = headline("ResNet-50", CONFIG("resnet50_float"), PLANES, PLANES + ":5")
VGG16 = headline("VGG-16", CONFIG("vgg16_float"), CONFIG("vgg16_tsq"))
TABLES = {
    "imagenet-alexnet": ALEXNET,
    "imagenet-alexnet-bn": ALEXNET_BN,
    "imagenet-mobilenet-v2": MOBILENET,
    "imagenet-resnet18": RESNET18,
    "imagenet-resnet50": RESNET50,
    "imagenet-vgg16": VGG16,
}
