"""Networks on ImageNet in float: what the quantized configs start from and are compared with.

`:MODEL` behind the file's name is one of MODELS, resnet50 without. Batches of 256, torchvision's
settings but for the rate, which falls as a cosine (theirs by steps; MobileNetV2's by 2 % an epoch):
  :resnet18, :resnet50  90 epochs, peak rate 0.1; torchvision's ResNet-18 has 69.76 % top-1
  :vgg16                with batch norms and no dropout, otherwise the same; 73.36 %
  :mobilenet_v2         300 epochs, peak rate 0.045, weight decay 4e-5; 71.88 %
  :alexnet_torch        torchvision's; 90 epochs, peak rate 0.01, dropout 0.5; 56.52 %
  :alexnet              with batch norms and wider; 320,000 steps, peak rate 0.02, weight decay 5e-4
                        as HWGQ trains it, crops of 227x227 as in TSQ's demonstration
Accelerator; no result yet. Commands, the first of them once:
  bitjax prepare tfds:imagenet2012 --from FOLDER_OF_THE_TWO_TAR_FILES
  bitjax train imagenet/float:resnet18 --workdir runs/resnet18
"""

from bitjax.configs.base import get_config as base_config

EPOCH = 1_281_167 // 256  # steps
MODELS = {
    "resnet18": {},
    "resnet50": {},
    "vgg16": {},
    "mobilenet_v2": {"steps": 300 * EPOCH, "learning_rate": 0.045, "weight_decay": 4e-5},
    "alexnet_torch": {"learning_rate": 0.01},
    "alexnet": {
        "steps": 320_000,
        "learning_rate": 0.02,
        "weight_decay": 5e-4,
        "warmup": EPOCH,
    },
}
NAMES = {"alexnet_torch": "alexnet", "alexnet": "alexnet_bn"}  # of the models, where others
DROPOUT = {"mobilenet_v2": 0.2, "alexnet_torch": 0.5}


def get_config(model="resnet50"):
    check(model, MODELS)
    config = base_config()
    config.name = f"imagenet/{model}_float"
    config.model = {"name": NAMES.get(model, model), "num_classes": 1000}
    if model in DROPOUT:
        config.model.update({"dropout": DROPOUT[model]})
    config.data.name = "tfds:imagenet2012"
    config.data.batch_size = 256
    config.data.eval_batch_size = 250
    config.data.augmentation = "random_resized_crop"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    if model == "alexnet":
        config.data.image_size = 227
    config.method = {
        "name": "full_precision",
        "steps": 90 * EPOCH,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 5 * EPOCH,
        **MODELS[model],
    }
    config.checkpoint_every = 1000
    config.log_every = 100
    return config


def check(model, models):
    if model not in models:
        raise ValueError(f"behind the config's name comes one of {', '.join(models)}, got {model}")
