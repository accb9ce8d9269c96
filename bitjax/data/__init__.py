"""Data: sources, batches by step, augmentation on the device."""

from bitjax.data.arrays import Dataset as Dataset
from bitjax.data.augment import AUGMENTATIONS as AUGMENTATIONS
from bitjax.data.augment import crop_flip as crop_flip
from bitjax.data.augment import none as none
from bitjax.data.augment import normalize as normalize
from bitjax.data.augment import shift as shift
from bitjax.data.check import check_dataset as check_dataset
from bitjax.data.digits import digits as digits
from bitjax.data.examples import DatasetLike as DatasetLike
from bitjax.data.files import cifar10 as cifar10
from bitjax.data.files import fashion_mnist as fashion_mnist
from bitjax.data.fingerprint import fingerprint as fingerprint
from bitjax.data.imagenet_sample import imagenet_sample as imagenet_sample
from bitjax.data.order import batch_indices as batch_indices
from bitjax.data.pipeline import eval_batches as eval_batches
from bitjax.data.pipeline import train_batch as train_batch
from bitjax.data.pipeline import train_batches as train_batches
from bitjax.data.prefetch import to_device as to_device
from bitjax.data.registry import SOURCES as SOURCES
from bitjax.data.registry import is_known as is_known
from bitjax.data.registry import load as load
from bitjax.data.split import held_out as held_out
from bitjax.data.stream import StreamedDataset as StreamedDataset
from bitjax.data.token_files import decode as decode
from bitjax.data.token_streams import token_dataset as token_dataset
from bitjax.data.tokens import TokenDataset as TokenDataset
