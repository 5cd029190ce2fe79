"""Loads a data set by name."""

import os

import numpy as np

from irp_jax.data.augmentation import Augmentation
from irp_jax.data.dataset import Dataset, hold_out, validation_size
from irp_jax.data.folders import load_folder
from irp_jax.data.npz import load_npz
from irp_jax.data.splits import Split
from irp_jax.errors import UserError, extra, unknown

DATASETS: dict[str, Augmentation] = {
    "cifar10": Augmentation(crop_padding=4, flip=True),
    "cifar100": Augmentation(crop_padding=4, flip=True),
    "svhn_cropped": Augmentation(crop_padding=4),
    "mnist": Augmentation(crop_padding=2),
    "fashion_mnist": Augmentation(crop_padding=2, flip=True),
    "digits": Augmentation(),
}
"""The sets known by name, with their default augmentation. Digits are never mirrored."""


IMAGE_SIZE = 224
"""Default height and width of the images of a folder."""


def load(
    name: str,
    *,
    data_dir: str | None = None,
    validation_fraction: float = 0.02,
    image_size: int | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
        name: a key of `DATASETS`, or the path of a user's ``.npz`` file (see `irp_jax.data.npz`) or
            folder of images (see `irp_jax.data.folders`).
        data_dir: for the downloaded sets, the directory for the prepared set, which may also hold
            the official files; None means ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``.
        validation_fraction: the fraction of *training* images held out for validation, in
            ``[0, 1)``; 0 gives an empty split. An ``.npz`` file or a folder with its own validation
            images keeps those instead.
        image_size: height and width of the images of a folder; `IMAGE_SIZE` if None. Other sets
            have their own.

    Returns:
        The data set. ``round(validation_fraction * N)`` of the N training images are held out, each
        class in proportion, always the same images. The test split does not change.

    Raises:
        UserError: the name is unknown, a file is invalid, a download fails, or the validation
            fraction is out of range.
    """
    validation_size(validation_fraction, 1_000_000)  # refuse a bad fraction before any download
    check_name(name)
    if is_folder(name):
        return load_folder(
            name, IMAGE_SIZE if image_size is None else image_size, validation_fraction
        )
    train, validation, test, class_names = _load_splits(name, data_dir)
    if validation is None:
        train, validation = hold_out(train, validation_size(validation_fraction, len(train)))
    return Dataset(
        name=name, train=train, validation=validation, test=test, class_names=class_names
    )


def check_name(name: str) -> None:
    """Raises UserError for a name that `load` does not know, without loading anything.

    Args:
        name: a key of `DATASETS`, or the path of an existing ``.npz`` file or folder.

    Raises:
        UserError: the name is unknown; the message gives the nearest name, or the missing file.
    """
    if name in DATASETS or is_folder(name):
        return
    if not _is_path(name):
        raise unknown("dataset", name, [*DATASETS, "PATH.npz", "FOLDER"])
    takes = "--dataset takes a data set's name, an .npz file or a folder of images"
    if not os.path.exists(name) and not name.endswith(".npy"):
        kind = "file" if name.endswith(".npz") else "folder"
        raise UserError(f"no {kind} {name}: {takes}")
    if not name.endswith(".npz"):
        raise UserError(f"dataset {name} is not an .npz file: write one with numpy.savez")


def default_augmentation(
    name: str, image_shape: tuple[int, int, int], *, in_files: bool = False
) -> Augmentation:
    """Returns the default augmentation of the training images.

    Args:
        name: a data set's name or path.
        image_shape: ``(H, W, C)`` of its images.
        in_files: whether they are read from files when they are needed, as those of a folder.

    Returns:
        The policy in `DATASETS`. Images in files are mirrored; they are cropped when they are
        read. A user's arrays are cropped with a padding of 4 pixels if both sides are over 24
        pixels. They are never mirrored, because that may change the class.
    """
    if name in DATASETS:
        return DATASETS[name]
    if in_files:
        return Augmentation(flip=True)
    return Augmentation(crop_padding=4 if min(image_shape[:2]) > 24 else 0)


def is_folder(name: str) -> bool:
    """Returns whether a name is the path of a folder, and not the name of a set."""
    return name not in DATASETS and os.path.isdir(name)


def _is_path(name: str) -> bool:
    return name.endswith((".npz", ".npy")) or os.sep in name


def _load_splits(
    name: str, data_dir: str | None
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    """Returns training, validation (None if the set has none) and test split, and class names."""
    if _is_path(name):
        return load_npz(name)
    # Imported only when needed: these packages are slow to import and optional.
    if name == "digits":
        with extra("data"):
            from irp_jax.data.digits import load_digits

        train, test, class_names = load_digits()
    else:
        with extra("data"):
            from irp_jax.data.tfds_loader import load_prepared

        train, test, class_names = load_prepared(name, data_dir)
    for split in (train, test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    return train, None, test, class_names
