"""Noise: each channel of each pixel is disturbed on its own.

Like every corruption, these take images ``(N, H, W, C)`` float64 in [0, 1], one generator per image
and the constants of one severity. They return float64 of the same shape, which may leave [0, 1]:
`table.corrupt` clips.
"""

import numpy as np

from irp_jax.data.corruptions.draws import Generators, draw


def gaussian_noise(images: np.ndarray, random: Generators, deviation: float) -> np.ndarray:
    """Adds normal noise, as in low light.

    Args:
        images: see the module.
        random: see the module.
        deviation: standard deviation, in units of [0, 1].
    """
    shape = images.shape[1:]
    return images + draw(random, lambda generator: generator.normal(0, deviation, shape))


def shot_noise(images: np.ndarray, random: Generators, photons: float) -> np.ndarray:
    """Replaces each level by a Poisson count of that mean, as light's discreteness does.

    Args:
        images: see the module.
        random: see the module.
        photons: the mean count at white.
    """
    counts = [
        generator.poisson(photons * image) for generator, image in zip(random, images, strict=True)
    ]
    return np.stack(counts) / photons


def impulse_noise(images: np.ndarray, random: Generators, amount: float) -> np.ndarray:
    """Sets levels to black or white, as bit errors do; the colour analogue of salt and pepper.

    Args:
        images: see the module.
        random: see the module.
        amount: the probability of a hit; half of the hits are white.
    """
    shape = images.shape[1:]
    chance = draw(random, lambda generator: generator.random_sample(shape))
    return np.where(chance < amount / 2, 0.0, np.where(chance < amount, 1.0, images))
