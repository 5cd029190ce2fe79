"""Loads data sets as arrays, and augments images on the device.

Only this package imports TensorFlow Datasets, scikit-learn and PIL.
"""

from irp_jax.data.arrays import (
    Dataset,
    Split,
    digest,
    hold_out,
    limited,
    split_digest,
    validation_size,
)
from irp_jax.data.augmentation import Augmentation, augment, to_float
from irp_jax.data.names import DATASETS, check_name, default_augmentation, load
from irp_jax.data.npz import checked

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Split",
    "augment",
    "check_name",
    "checked",
    "default_augmentation",
    "digest",
    "hold_out",
    "limited",
    "load",
    "split_digest",
    "to_float",
    "validation_size",
]
