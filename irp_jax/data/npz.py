"""A user's own arrays from one ``.npz`` file.

The file holds these arrays, and no others are read:

==================== ==============================  =========================================
name                 shape                           values
==================== ==============================  =========================================
train_images         (N, H, W), (N, H, W, 1 or 3)    uint8, or floats in [0, 1]
train_labels         (N,)                            integers 0 to K - 1
test_images          as train_images                 as train_images
test_labels          as train_labels                 as train_labels
validation_images    optional, as train_images       as train_images
validation_labels    with validation_images          as train_labels
class_names          optional, (K,)                  strings
==================== ==============================  =========================================

Without ``class_names`` every class from 0 to K - 1 must occur among the training labels. Floats
are rounded to the nearest of the 256 levels. ``numpy.savez`` writes such a file.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from irp_jax.data.dataset import in_unit_range
from irp_jax.data.splits import Split
from irp_jax.errors import DAMAGED_NPZ, UserError

_log = logging.getLogger(__name__)

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("validation_images", "validation_labels")


def load_npz(path: str) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    """Loads and checks a user's arrays.

    Args:
        path: the ``.npz`` file, in the layout of this module's docstring.

    Returns:
        Training split, validation split (None if the file has none), test split, class names.
        Images are ``(N, H, W, C)`` uint8 with C 1 or 3, labels ``(N,)`` int32.

    Raises:
        UserError: the file does not have that layout. No code in the file is ever executed.
    """
    return checked(path, _read(path))


def checked(
    path: str, arrays: Mapping[str, np.ndarray]
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    """Checks arrays and converts them to splits.

    Args:
        path: where the arrays come from, for messages.
        arrays: name -> array, in the layout of this module's docstring.

    Returns:
        As `load_npz`.

    Raises:
        UserError: the arrays do not have that layout.
    """
    splits = {
        name: _split(path, arrays, name)
        for name in ("train", "validation", "test")
        if f"{name}_images" in arrays
    }
    shape = splits["train"].images.shape[1:]
    for name, split in splits.items():
        if split.images.shape[1:] != shape:
            raise UserError(
                f"{path}: {name}_images are {_by(split.images.shape[1:])} but train_images are "
                f"{_by(shape)}: all images must have one shape"
            )
    class_names = _class_names(path, arrays, splits["train"].labels)
    for name, split in splits.items():
        largest = int(split.labels.max())
        if largest >= len(class_names):
            raise UserError(
                f"{path}: {name}_labels holds {largest} but there are {len(class_names)} classes: "
                f"labels must be 0 to {len(class_names) - 1}"
            )
    return splits["train"], splits.get("validation"), splits["test"], class_names


def _read(path: str) -> dict[str, np.ndarray]:
    """Reads the known arrays of the file."""
    if not Path(path).is_file():
        raise UserError(f"no file {path}: --dataset takes a data set's name or an .npz file")
    arrays = {}
    name = ""
    try:
        with open(path, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array: write it with numpy.savez")
            present = archive.files
            for name in (*REQUIRED, *VALIDATION, "class_names"):
                if name in present:
                    arrays[name] = archive[name]
    except UserError:
        raise
    except ValueError as error:
        if "pickle" in str(error) and name:
            raise UserError(
                f"{path}: {name} is an object array, which could run code on loading: save it "
                "with a plain dtype, images as uint8 and labels as int64"
            ) from error
        raise UserError(f"{path} is not an .npz file: write it with numpy.savez") from error
    except MemoryError as error:
        raise UserError(f"{path}: {name} does not fit into memory: store fewer images") from error
    except DAMAGED_NPZ as error:
        raise UserError(f"{path} is damaged ({error}): write it again with numpy.savez") from error
    wanted = [*REQUIRED, *(VALIDATION if any(name in arrays for name in VALIDATION) else ())]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(present) or 'nothing'}: "
            f"name the arrays {', '.join(REQUIRED)}"
        )
    return arrays


def _split(path: str, arrays: Mapping[str, np.ndarray], name: str) -> Split:
    images = _images(f"{path}: {name}_images", arrays[f"{name}_images"])
    labels = _labels(f"{path}: {name}_labels", arrays[f"{name}_labels"])
    if len(images) != len(labels):
        raise UserError(
            f"{path}: {len(images)} {name}_images but {len(labels)} {name}_labels: "
            "give one label per image"
        )
    return Split(images=images, labels=labels)


def _images(what: str, images: np.ndarray) -> np.ndarray:
    """Returns the images as (N, H, W, C) uint8."""
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(
            f"{what} has shape {images.shape}: it must be (N, H, W) or (N, H, W, C) with C 1 or 3"
        )
    if images.size == 0:
        raise UserError(f"{what} has shape {images.shape}, which is empty: give at least one image")
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            raise UserError(f"{what} holds NaN or infinity: remove these values first")
        clipped = in_unit_range(images)
        if clipped is None:
            raise UserError(
                f"{what} has floats in [{images.min():.7g}, {images.max():.7g}], which must be in "
                "[0, 1]: rescale them, or save levels 0 to 255 as uint8"
            )
        images = np.round(clipped * 255).astype(np.uint8)
    if images.dtype != np.uint8:
        raise UserError(f"{what} is {images.dtype}: save uint8, or floats in [0, 1]")
    if images.max() <= 1:
        _log.warning(
            "%s is black: no pixel is above level 1 of 255; save uint8 levels, or floats that were "
            "divided by 255 only once", what,
        )  # fmt: skip
    return images[..., None] if images.ndim == 3 else images


def _labels(what: str, labels: np.ndarray) -> np.ndarray:
    """Returns the labels as (N,) int32."""
    if labels.ndim != 1:
        raise UserError(f"{what} has shape {labels.shape}: it must be (N,), one class per image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{what} is {labels.dtype}: save integers, e.g. labels.astype(numpy.int64)")
    if len(labels) and labels.min() < 0:
        raise UserError(f"{what} holds {labels.min()}: labels must be 0 to K - 1")
    if len(labels) and labels.max() > np.iinfo(np.int32).max:
        raise UserError(f"{what} holds {labels.max()}: labels must be 0 to K - 1")
    return labels.astype(np.int32)


def _class_names(
    path: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[str, ...]:
    """Returns the class names; the label numbers if the file has no names."""
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U" or len(names) < 2:
            raise UserError(
                f"{path}: class_names is {names.dtype} of shape {names.shape}: it must be (K,) "
                "strings, at least two"
            )
        return tuple(names.tolist())
    present = np.unique(labels)
    if len(present) < 2:
        raise UserError(f"{path}: train_labels holds only {present[0]}: give at least two classes")
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise UserError(
            f"{path}: train_labels holds {present[gaps[0]]} but no {gaps[0]}: number the classes 0 "
            "to K - 1 without gaps, or name them all in class_names"
        )
    return tuple(str(label) for label in present)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
