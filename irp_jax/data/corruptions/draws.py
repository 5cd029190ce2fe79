"""Random numbers that depend on the image, but not on its batch."""

import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

# One per image of a batch, in the order of the batch.
Generators = Sequence[np.random.RandomState]


def generators(seed: int, indices: Iterable[int], name: str, severity: int) -> Generators:
    """Returns one random generator per image.

    Args:
        seed: in ``[0, 2^32)``.
        indices: the position of each image in its set, each in ``[0, 2^32)``.
        name: the corruption's name.
        severity: 1 to 5.

    Returns:
        One generator per index. It depends on these four values only.
    """
    stream = zlib.crc32(name.encode())
    # NumPy guarantees the draws of RandomState; those of Generator may change between versions.
    # Philox starts ten times as fast as the Mersenne Twister, RandomState's default.
    return [
        np.random.RandomState(np.random.Philox([seed, int(index), stream, severity]))
        for index in indices
    ]


def draw(
    random: Generators, sample: Callable[[np.random.RandomState], float | np.ndarray]
) -> np.ndarray:
    """Draws from each image's own generator.

    Args:
        random: N generators.
        sample: function that draws for one image.

    Returns:
        ``(N, ...)``: the samples, stacked.
    """
    return np.stack([sample(generator) for generator in random])
