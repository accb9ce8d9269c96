"""ResNet-50 on ImageNet in float: what the quantized configs start from and are compared with.

90 epochs of batch 256. Accelerator; no result yet. Commands, the first of them once:
  python -m experiments.prepare_data tfds:imagenet2012 --from FOLDER_OF_THE_TWO_TAR_FILES
  python -m experiments.train --config configs/imagenet/resnet50_float.py --workdir runs/resnet50
"""

from bitjax.configs.base import get_config as base_config

EPOCH = 1_281_167 // 256  # steps


def get_config():
    config = base_config()
    config.model = {"name": "resnet50", "num_classes": 1000}
    config.data.name = "tfds:imagenet2012"
    config.data.batch_size = 256
    config.data.eval_batch_size = 250
    config.data.augmentation = "random_resized_crop"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.method = {
        "name": "full_precision",
        "steps": 90 * EPOCH,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 5 * EPOCH,
    }
    config.checkpoint_every = 1000
    config.log_every = 100
    return config
