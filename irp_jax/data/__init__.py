"""Names become arrays; augmentation happens on the device.

The only package that imports TensorFlow Datasets, scikit-learn and PIL.
"""

from irp_jax.data.arrays import Dataset, Split, limited, validation_size
from irp_jax.data.augment import Augmentation, augment, to_float
from irp_jax.data.load import DATASETS, check_name, default_augmentation, load

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Split",
    "augment",
    "check_name",
    "default_augmentation",
    "limited",
    "load",
    "to_float",
    "validation_size",
]
