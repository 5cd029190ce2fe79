"""A data set, and stratified splits of it."""

import dataclasses
from typing import TypeVar

import numpy as np

from irp_jax.data.splits import FileSplit, Split, splits_digest
from irp_jax.errors import UserError

Some = TypeVar("Some", Split, FileSplit)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Three splits that share one image shape and one list of classes.

    Attributes:
        name: the name or path that it was loaded from.
        train: the training images. Those of a folder stay in their files.
        validation: images held out of training, for model selection; may be empty.
        test: the images for the final figures only.
        class_names: one name per class, in label order.
    """

    name: str
    train: Split | FileSplit
    validation: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, K; labels are 0 to K - 1."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, ``(H, W, C)``."""
        return self.train.image_shape


ROUNDING = 1e-6
"""How far a rounding error may take a pixel outside [0, 1]: a few float32 resolutions."""


def in_unit_range(images: np.ndarray) -> np.ndarray | None:
    """Returns float images with rounding errors beyond [0, 1] clipped; None for larger excess.

    Args:
        images: floats of any shape, at least one. NaN counts as outside.
    """
    low, high = float(images.min()), float(images.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails as well
        return None
    return images if low >= 0 and high <= 1 else np.clip(images, 0, 1)


def stratified_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Chooses ``count`` examples in which the classes have the proportions of the whole set.

    Each class contributes its exact share rounded down. The remaining examples come from the
    classes with the largest remainders. The choice depends on ``labels`` and ``count`` only: it is
    the same on every machine and with every NumPy version.

    Args:
        labels: ``(N,)`` integers.
        count: how many to choose, in ``[0, N]``.

    Returns:
        ``(count,)`` int64 indices into ``labels``, ascending, without repeats. Every class
        contributes its share, rounded down or up.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    # Integers, so that no rounding error affects the choice of classes.
    quotas, remainders = np.divmod(sizes * count, max(len(labels), 1))
    largest = np.argsort(-remainders, kind="stable")[: count - quotas.sum()]
    quotas[largest] += 1
    # NumPy guarantees the stream of RandomState; that of Generator may change between versions.
    random = np.random.RandomState(0)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def hold_out(split: Some, count: int) -> tuple[Some, Some]:
    """Divides a split in two, with the same class proportions.

    Args:
        split: N examples.
        count: how many to hold out, in ``[0, N]``.

    Returns:
        The ``N - count`` examples that stay and the ``count`` held out, both in their old order.
        They are disjoint and stratified, see `stratified_indices`.
    """
    held = stratified_indices(split.labels, count)
    kept = np.setdiff1d(np.arange(len(split)), held)
    return split.take(kept), split.take(held)


def limited(dataset: Dataset, count: int) -> Dataset:
    """Returns the data set with `count` of its training images; see `stratified_indices`.

    Raises:
        UserError: there are fewer training images.
    """
    if count > len(dataset.train):
        raise UserError(
            f"{count:,} training images are requested of {dataset.name}, but it has "
            f"{len(dataset.train):,}: give --train-images at most that, or 0 for all"
        )
    chosen = stratified_indices(dataset.train.labels, count)
    return dataclasses.replace(dataset, train=dataset.train.take(chosen))


def digest(dataset: Dataset) -> str:
    """Returns the SHA-256 of a data set's images, labels and class names.

    Images of files count by the names and sizes of the files: see `FileSplit.fingerprint`.
    """
    names = repr(dataset.class_names).encode()
    return splits_digest(names, dataset.train, dataset.validation, dataset.test)


def split_digest(split: Split) -> str:
    """Returns `Split.fingerprint`; an empty string if the split is empty."""
    return split.fingerprint() if len(split) else ""


def validation_size(fraction: float, train_size: int) -> int:
    """Returns how many training images the validation split takes.

    Args:
        fraction: the fraction of training images to hold out, in ``[0, 1)``; 0 holds out none.
        train_size: the number of training images.

    Raises:
        UserError: the fraction is out of range or leaves no training images.
    """
    if not 0 <= fraction < 1:  # false for NaN as well
        raise UserError(
            f"validation fraction must be in [0, 1), got {fraction}: 0.02 holds out one in fifty"
        )
    count = round(fraction * train_size)
    if count >= train_size:
        raise UserError(
            f"validation fraction {fraction} leaves none of the {train_size} training images: "
            "use a smaller one"
        )
    return count
