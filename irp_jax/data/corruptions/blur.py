"""Blur: each pixel becomes an average of nearby pixels.

For the arguments that all corruptions share, see `irp_jax.data.corruptions.noise`.
"""

import math

import numpy as np
from scipy import ndimage

from irp_jax.data.corruptions.draws import Generators, draw


def defocus_blur(images: np.ndarray, _: Generators, radius: float, softness: float) -> np.ndarray:
    """Averages over a disk, like a lens out of focus.

    Args:
        images: see the module.
        radius: of the disk, in pixels; below 1 the disk is a single pixel.
        softness: standard deviation in pixels of the 3 x 3 Gaussian that smooths the disk.
    """
    reach = int(radius) + 1  # the smoothing needs one pixel around the disk
    offsets = np.arange(-reach, reach + 1)
    kernel = (offsets**2 + offsets[:, None] ** 2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.arange(-1, 2) / softness) ** 2)
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, taps, axis, mode="constant")
    kernel /= kernel.sum()
    return ndimage.correlate(images, kernel[None, :, :, None], mode="mirror")


def glass_blur(images: np.ndarray, random: Generators, sigma: float, rounds: int) -> np.ndarray:
    """Smooths, replaces pixels by random neighbours, and smooths again, like frosted glass.

    The paper describes swaps of pixels. The published program swaps NumPy views, which copies the
    neighbour and loses the pixel. In its scanning order the neighbour is still unchanged. In the
    published images each pixel therefore has an old value from the 2 x 2 square of which it is the
    lower right corner. This function does the same.

    Args:
        images: see the module.
        random: see the module.
        sigma: standard deviation of the smoothing, in pixels.
        rounds: number of times that the pixels are replaced.
    """
    number, height, width, _ = images.shape
    images = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")
    shape = (2, height - 2, width - 2)  # the published loops skip two rows and columns
    for _ in range(rounds):
        shifts = draw(random, lambda generator: generator.randint(-1, 1, shape))
        rows = np.arange(2, height)[:, None] + shifts[:, 0]
        columns = np.arange(2, width) + shifts[:, 1]
        old = images.copy()
        images[:, 2:, 2:] = old[np.arange(number)[:, None, None], rows, columns]
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def motion_blur(images: np.ndarray, random: Generators, radius: int, sigma: float) -> np.ndarray:
    """Smears each image along one random direction, within 45 degrees of the horizontal.

    Args:
        images: see the module.
        random: see the module.
        radius: see `line_blur`.
        sigma: see `line_blur`.
    """
    degrees = draw(random, lambda generator: generator.uniform(-45, 45))
    return line_blur(images, degrees, radius, sigma)


def line_blur(images: np.ndarray, degrees: np.ndarray, radius: int, sigma: float) -> np.ndarray:
    """Averages along a line that starts at the pixel, with Gaussian weights.

    Args:
        images: ``(N, H, W, C)`` float64.
        degrees: ``(N,)`` each image's direction; 0 is right, 90 is down.
        radius: the line is ``2 * radius + 1`` pixels long.
        sigma: standard deviation of the Gaussian, in pixels.

    Returns:
        ``(N, H, W, C)`` float64. Pixels beyond the border equal the nearest one inside.

    References:
        The motion blur of ImageMagick, which the published program calls, implemented from its
        definition. ImageMagick also rounds the result to 16 bits.
    """
    number, height, width, _ = images.shape
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angles = np.deg2rad(degrees)[:, None]
    each = np.arange(number)[:, None, None]
    blurred = np.zeros_like(images)
    for step, weight in zip(steps, weights, strict=True):
        down = np.ceil(step * np.sin(angles) - 0.5).astype(int)
        right = np.ceil(step * np.cos(angles) - 0.5).astype(int)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        blurred += weight * images[each, rows[:, :, None], columns[:, None, :]]
    return blurred


def zoom_blur(images: np.ndarray, _: Generators, stop: float) -> np.ndarray:
    """Averages the image with enlarged versions of itself, as when moving towards the scene.

    Args:
        images: see the module.
        stop: end of the magnifications, which start at 1 in steps of 0.01. As in the published
            program, the rounding of `numpy.arange` decides whether the end is included.
    """
    factors = np.arange(1, stop, 0.01)
    total = images + sum(magnify(images, factor) for factor in factors)
    return total / (len(factors) + 1)


def magnify(images: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the middle of each image to the size of the whole, with bilinear interpolation.

    Args:
        images: ``(N, H, W, C)`` float64.
        factor: at least 1.

    Returns:
        ``(N, H, W, C)`` float64.
    """
    rows, columns = (_magnifier(size, factor) for size in images.shape[1:3])
    return np.einsum("yr,xc,nrcd->nyxd", rows, columns, images, optimize=True)


def _magnifier(size: int, factor: float) -> np.ndarray:
    """Returns the ``(size, size)`` matrix that enlarges a line of pixels."""
    cropped = math.ceil(size / factor)
    zoomed = round(cropped * factor)
    surplus = (zoomed - size) // 2
    # The centres of the end pixels stay in place, as in scipy.ndimage.zoom.
    places = (size - cropped) // 2 + np.linspace(0, cropped - 1, zoomed)[surplus : surplus + size]
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))
