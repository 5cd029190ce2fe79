"""A split of a data set: images and labels, in memory or in files."""

import dataclasses
import hashlib
from collections.abc import Generator
from pathlib import Path

import numpy as np

from irp_jax.data.streaming import filled, read


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: ``(N, H, W, C)`` uint8.
        labels: ``(N,)`` int32 in ``[0, num_classes)``.
        source: digest of the files that the images were read from: see `FileSplit.fingerprint`.
            Empty for other images.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str = ""

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Returns the images at ``indices`` ``(M,)``, in that order."""
        return Split(images=self.images[indices], labels=self.labels[indices])

    def loaded(self) -> "Split":
        """Returns the split, whose images are in memory: see `FileSplit.loaded`."""
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, ``(H, W, C)``."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the images and labels, or of the files they were read from."""
        return self.source or splits_digest(b"", self)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit:
    """Images in files, and their labels.

    Attributes:
        root: folder of the data set.
        paths: (N,) of str, relative to `root`.
        sizes: (N,) int64, bytes of each file.
        labels: (N,) int32 in ``[0, num_classes)``.
        side: height and width to which images are brought.
    """

    root: Path
    paths: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    side: int

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (H, W, 3)."""
        return self.side, self.side, 3

    def take(self, indices: np.ndarray) -> "FileSplit":
        """Returns the images at ``indices`` ``(M,)``, in that order. No file is read."""
        return dataclasses.replace(
            self, paths=self.paths[indices], sizes=self.sizes[indices], labels=self.labels[indices]
        )

    def read(
        self, keys: np.ndarray | None = None, ahead: int = 64
    ) -> Generator[np.ndarray, None, None]:
        """Yields the images one by one: see `streaming.read`."""
        return read(self.root, self.paths, self.side, keys=keys, ahead=ahead)

    def loaded(self) -> Split:
        """Reads all images into memory: centre squares, resized.

        Raises:
            UserError: a file is damaged or gone.
        """
        images = filled(self.read(), (len(self), *self.image_shape))
        return Split(images=images, labels=self.labels, source=self.fingerprint())

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the names and sizes of the files, and of the images' size."""
        total = hashlib.sha256(f"{self.image_shape}".encode())
        for path, size in zip(self.paths, self.sizes, strict=True):
            total.update(f"{path}\0{size}\0".encode(errors="surrogateescape"))
        return total.hexdigest()


def splits_digest(start: bytes, *splits: Split | FileSplit) -> str:
    """Returns the SHA-256 of some bytes, and of images and labels or the files they are in."""
    total = hashlib.sha256(start)
    for split in splits:
        if not isinstance(split, Split) or split.source:
            total.update(split.fingerprint().encode())
            continue
        for array in (split.images, split.labels):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
