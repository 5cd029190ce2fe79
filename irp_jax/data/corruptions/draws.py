"""Random numbers that belong to one image, whatever batch it travels in."""

import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

# One per image of a batch, in its order.
Generators = Sequence[np.random.RandomState]


def generators(seed: int, indices: Iterable[int], name: str, severity: int) -> Generators:
    """Starts one stream per image.

    Args:
        seed: in ``[0, 2^32)``.
        indices: the position of each image in its set, each in ``[0, 2^32)``.
        name: the corruption's name.
        severity: 1 to 5.

    Returns:
        One generator per index, which depends on the four values alone.
    """
    stream = zlib.crc32(name.encode())
    # RandomState's draws are frozen by NumPy's policy, Generator's may change between versions;
    # Philox starts ten times as fast as RandomState's own Mersenne Twister.
    return [
        np.random.RandomState(np.random.Philox([seed, int(index), stream, severity]))
        for index in indices
    ]


def draw(
    random: Generators, sample: Callable[[np.random.RandomState], float | np.ndarray]
) -> np.ndarray:
    """Draws from each image's own stream.

    Args:
        random: N generators.
        sample: draws for one image.

    Returns:
        ``(N, ...)``: the samples, stacked.
    """
    return np.stack([sample(generator) for generator in random])
