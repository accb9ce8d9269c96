"""What quantization does to networks on ImageNet.

python -m experiments.reproduce imagenet-squeezenet
The published SqueezeNet is quantized without training, on 1,000 images, by two cores. The other
tables, a method's headline each with the float run that it starts from, need all of ImageNet and an
accelerator; they have not been run.
"""

from bitjax.configs.imagenet.squeezenet import POINTS


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
SQUEEZENET = {
    "title": "A published, pruned SqueezeNet on ImageNet without training",
    "about": "The 500 images of even labels calibrate, the 500 of odd labels judge, of which one "
    "is 0.2 points of top-1: KL, of the float network's classes from the model's in nats, says "
    "more. Two thirds of the weights are pruned, and every row keeps these zeros. Model kB counts "
    "them as codes like others; the authors' file of 660 kB, of 8 and 5 bits, tells where the "
    "others are, and codes by Huffman. `nearest` rounds, `gptq` and `solved` solve layer by layer "
    "from 128 images, `bottleneck` rounds kernels and gives inputs eight bit-planes, `measured` "
    "spreads the bytes of equal bits over the kernels by measured effects on the outputs.",
    "small": True,
    "seeds": (0,),
    "configs": tuple(f"configs/imagenet/squeezenet.py:{point}" for point in POINTS),
    "baseline": "imagenet/squeezenet/float",
    "columns": ("loss", "kl", "bits_weights", "bits_activations", "model_bytes", "wall_seconds"),
    "cost": "model_bytes",
}
TABLES = {
    "imagenet-alexnet": ALEXNET,
    "imagenet-alexnet-bn": ALEXNET_BN,
    "imagenet-mobilenet-v2": MOBILENET,
    "imagenet-resnet18": RESNET18,
    "imagenet-resnet50": RESNET50,
    "imagenet-squeezenet": SQUEEZENET,
    "imagenet-vgg16": VGG16,
}
