"""Plain Flax Linen models, with no quantization inside."""

from bitjax.models.alexnet import AlexNet as AlexNet
from bitjax.models.alexnet import AlexNetBN as AlexNetBN
from bitjax.models.cnn import SmallCNN as SmallCNN
from bitjax.models.gpt2 import GPT2 as GPT2
from bitjax.models.mlp import MLP as MLP
from bitjax.models.mobilenet import InvertedResidual as InvertedResidual
from bitjax.models.mobilenet import MobileNetV2 as MobileNetV2
from bitjax.models.pretrained import RESNET_MEAN as RESNET_MEAN
from bitjax.models.pretrained import RESNET_STD as RESNET_STD
from bitjax.models.pretrained import load_llama as load_llama
from bitjax.models.pretrained import load_resnet as load_resnet
from bitjax.models.resnet import CifarResNet as CifarResNet
from bitjax.models.resnet import ResidualBlock as ResidualBlock
from bitjax.models.resnet import option_a_shortcut as option_a_shortcut
from bitjax.models.resnet import resnet20 as resnet20
from bitjax.models.resnet import resnet32 as resnet32
from bitjax.models.resnet import resnet44 as resnet44
from bitjax.models.resnet import resnet56 as resnet56
from bitjax.models.resnet_imagenet import ImageNetResNet as ImageNetResNet
from bitjax.models.resnet_imagenet import resnet18 as resnet18
from bitjax.models.resnet_imagenet import resnet50 as resnet50
from bitjax.models.transformer import Llama as Llama
from bitjax.models.vgg import VGG16 as VGG16
from bitjax.models.vgg import VGGSmall as VGGSmall
