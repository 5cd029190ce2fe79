"""Noise: each channel of each pixel is changed independently.

All corruptions take images ``(N, H, W, C)`` float64 in [0, 1], one generator per image, and the
constants of one severity. They return float64 of the same shape. The result may leave [0, 1];
`table.corrupt` clips it.
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
    """Replaces each level by a Poisson count with that mean, like photon noise.

    Args:
        images: see the module.
        random: see the module.
        photons: the mean count of a white pixel.
    """
    counts = [
        generator.poisson(photons * image) for generator, image in zip(random, images, strict=True)
    ]
    return np.stack(counts) / photons


def impulse_noise(images: np.ndarray, random: Generators, amount: float) -> np.ndarray:
    """Sets levels to 0 or 1, like bit errors; the colour analogue of salt-and-pepper noise.

    Args:
        images: see the module.
        random: see the module.
        amount: the probability of a change; half of the changed levels become 1.
    """
    shape = images.shape[1:]
    chance = draw(random, lambda generator: generator.random_sample(shape))
    return np.where(chance < amount / 2, 0.0, np.where(chance < amount, 1.0, images))
