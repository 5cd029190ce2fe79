"""Reads many image files in threads, ahead of the one that is needed next, through grain."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from irp_jax import machine
from irp_jax.data.decoding import decode
from irp_jax.errors import extra

MOST_THREADS = 32
"""Largest number of threads. Pillow decodes outside Python's lock, so they run at the same time."""


def read(
    root: Path,
    paths: Sequence[str] | np.ndarray,
    side: int,
    *,
    keys: np.ndarray | None = None,
    ahead: int = 64,
) -> Generator[np.ndarray, None, None]:
    """Yields the images of files, in their order.

    Args:
        root: a folder.
        paths: of N image files in it.
        side: height and width of the images.
        keys: (N, K) integers; the crop of an image depends on its row alone. None keeps the centre.
        ahead: number of images that are read ahead and held in memory, at least.

    Yields:
        (side, side, 3) uint8.

    Raises:
        UserError: a file is damaged or gone, or a package is missing.
    """
    with extra("folders"):
        import grain

    def one(number: int) -> np.ndarray:
        random = None if keys is None else np.random.default_rng(keys[number].tolist())
        return decode(root / paths[number], side, random)

    threads = min(MOST_THREADS, max(4, machine.cores()))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    images = iter(grain.MapDataset.range(len(paths)).map(one).to_iter_dataset(options))
    try:
        yield from images
    finally:
        images.close()  # ends its threads if not all images were taken


def filled(images: Iterator[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the next images in one array.

    Args:
        images: each (H, W, C) uint8.
        shape: (..., H, W, C) of the result.
    """
    array = np.empty(shape, np.uint8)
    for place in array.reshape(-1, *shape[-3:]):
        place[...] = next(images)
    return array
