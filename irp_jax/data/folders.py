"""A folder of images that need not fit into memory: ``FOLDER/train/CLASS/*.jpg``.

============================ =========================================================
folder                       content
============================ =========================================================
train/CLASS/                 training images
test/CLASS/ or val/CLASS/    test images
both of them                 val/ holds the held-out images, test/ the test images
============================ =========================================================

Images are .jpg, .jpeg or .png files of any size. Hidden files are ignored. Training images are read
when they are needed. Held-out and test images are read once and stay in memory.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from irp_jax.data.dataset import Dataset, hold_out, stratified_indices, validation_size
from irp_jax.data.splits import FileSplit
from irp_jax.errors import UserError

_log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")

LARGEST_SIDE = 4096
"""Largest height and width to which images are brought, in pixels."""

IN_MEMORY = 2**30
"""Largest number of bytes of the held-out images, and of the test images: 7,133 images of 224 x
224, or 87,381 of 64 x 64. An evaluation holds them in float32 as well."""


def open_folder(
    path: str, side: int, validation_fraction: float
) -> tuple[FileSplit, FileSplit, FileSplit, tuple[str, ...]]:
    """Lists the files of a folder. No image is read.

    Args:
        path: the folder, in the layout of this module's docstring.
        side: height and width to which images are brought.
        validation_fraction: share of the training images that are held out if there are no others.

    Returns:
        Training images, held-out images, test images, and the names of the classes. Held-out and
        test images are at most `IN_MEMORY`, with the proportions of the classes kept. They are in a
        random order, always the same, so that the first ones are of all classes.

    Raises:
        UserError: the folder does not have that layout, or the size is wrong.
    """
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
        raise UserError(
            f"--image-size must be a whole number up to {LARGEST_SIDE}, got {side!r}: 224 is usual"
        )
    root = Path(path)
    if not (root / "train").is_dir():
        raise UserError(
            f"{path} has no folder train: images belong into {root / 'train'}/CLASS/ and "
            f"{root / 'test'}/CLASS/"
        )
    named = [name for name in ("val", "test") if (root / name).is_dir()]
    if not named:
        raise UserError(
            f"{path} has no folder test and no folder val: put test images into "
            f"{root / 'test'}/CLASS/"
        )
    classes = _classes(root / "train")
    if len(classes) < 2:
        raise UserError(
            f"{root / 'train'} has only the class {classes[0]}: give at least two classes"
            if classes
            else f"{root / 'train'} is empty: put a folder of images for each class into it"
        )
    for name in named:
        _check_classes(root, name, classes)
    train = _listed(root, "train", classes, side)
    most = IN_MEMORY // (3 * side**2)
    test = _limited(_listed(root, named[-1], classes, side), most)
    if len(named) == 2:
        held_out = _limited(_listed(root, "val", classes, side), most)
    else:
        wanted = validation_size(validation_fraction, len(train))
        if wanted > most:
            _log.warning("%s", f"{most:,} images are held out and not {wanted:,}: {_WHY}")
        train, held_out = hold_out(train, min(most, wanted))
    return train, _mixed(held_out), _mixed(test), classes


def load_folder(path: str, side: int, validation_fraction: float) -> Dataset:
    """Opens a folder, and reads its held-out and test images.

    Args:
        path, side, validation_fraction: as for `open_folder`.

    Raises:
        UserError: as `open_folder`, or a held-out or test image is damaged.
    """
    train, held_out, test, classes = open_folder(path, side, validation_fraction)
    return Dataset(
        name=path, train=train, validation=held_out.loaded(), test=test.loaded(),
        class_names=classes,
    )  # fmt: skip


def folder_digest(path: str) -> str:
    """Returns the SHA-256 of the names and sizes of all files that `open_folder` lists."""
    found = [
        f"{split}/{name}/{file.name}\0{file.stat().st_size}"
        for split in ("train", "val", "test")
        if os.path.isdir(os.path.join(path, split))
        for name in _classes(Path(path, split))
        for file in _images(os.path.join(path, split, name))
    ]
    return hashlib.sha256("\0".join(found).encode(errors="surrogateescape")).hexdigest()


def _classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the folders within a folder, sorted."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for entry in entries:
        if not entry.is_dir():
            raise UserError(f"{entry.path} is in no class: move it into {folder}/CLASS/, or away")
    return tuple(sorted(entry.name for entry in entries))


def _check_classes(root: Path, name: str, classes: tuple[str, ...]) -> None:
    found = _classes(root / name)
    for one, has, other, lacks in (
        (name, found, "train", classes),
        ("train", classes, name, found),
    ):
        for label in sorted(set(has) - set(lacks)):
            raise UserError(
                f"{root / one} has the class {label} and {root / other} has not: give both the "
                f"same classes"
            )


def _listed(root: Path, name: str, classes: tuple[str, ...], side: int) -> FileSplit:
    """Returns the images of train, val or test, sorted by class and name."""
    paths: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, one in enumerate(classes):
        found = _images(os.path.join(root, name, one))
        paths += [f"{name}/{one}/{entry.name}" for entry in found]
        sizes += [entry.stat().st_size for entry in found]
        labels += [label] * len(found)
    return FileSplit(
        root=root, paths=np.array(paths, object), sizes=np.array(sizes, np.int64),
        labels=np.array(labels, np.int32), side=side,
    )  # fmt: skip


def _images(folder: str) -> list[os.DirEntry]:
    """Returns the image files of a class, sorted by name."""
    found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for entry in found:
        if not entry.name.lower().endswith(EXTENSIONS) or not entry.is_file():
            raise UserError(
                f"{entry.path} is no image file ({', '.join(EXTENSIONS)}): move it away"
            )
    if not found:
        raise UserError(f"{folder} holds no images: put some into it, or remove the class")
    return sorted(found, key=lambda entry: entry.name)


def _mixed(split: FileSplit) -> FileSplit:
    """Returns the images in a random order, always the same."""
    return split.take(np.random.RandomState(0).permutation(len(split)))


_WHY = "they are kept in memory"


def _limited(split: FileSplit, most: int) -> FileSplit:
    """Returns at most so many images, with the proportions of the classes kept."""
    if len(split) <= most:
        return split
    folder = split.root / split.paths[0].partition("/")[0]
    _log.warning("%s", f"{most:,} of the {len(split):,} images of {folder} are used: {_WHY}")
    return split.take(stratified_indices(split.labels, most))
