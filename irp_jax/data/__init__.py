"""Loads data sets as arrays or as folders of files, and augments images on the device.

Only this package imports TensorFlow Datasets, scikit-learn and PIL.
"""

from irp_jax.data.augmentation import Augmentation, augment, to_float
from irp_jax.data.dataset import (
    Dataset,
    Split,
    digest,
    hold_out,
    limited,
    split_digest,
    validation_size,
)
from irp_jax.data.folders import IN_MEMORY, FileSplit, folder_digest, open_folder
from irp_jax.data.npz import checked
from irp_jax.data.registry import (
    DATASETS,
    IMAGE_SIZE,
    check_name,
    default_augmentation,
    is_folder,
    load,
)

__all__ = [
    "DATASETS",
    "IMAGE_SIZE",
    "IN_MEMORY",
    "Augmentation",
    "Dataset",
    "FileSplit",
    "Split",
    "augment",
    "check_name",
    "checked",
    "default_augmentation",
    "digest",
    "folder_digest",
    "hold_out",
    "is_folder",
    "limited",
    "load",
    "open_folder",
    "split_digest",
    "to_float",
    "validation_size",
]
