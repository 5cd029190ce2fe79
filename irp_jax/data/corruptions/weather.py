"""Weather: snow, frost, fog and brightness.

For the arguments that all corruptions share, see `irp_jax.data.corruptions.noise`.
"""

import numpy as np

from irp_jax.data.corruptions.blur import line_blur, magnify
from irp_jax.data.corruptions.draws import Generators, draw

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

# Measured on random 32 x 32 crops of the published program's photographs, scaled down as there: the
# range of a crop's mean level, each colour's offset from it, and the standard deviation in a crop.
_FROST_LEVELS = (0.40, 0.86)
_FROST_TINT = np.array([-0.07, 0.01, 0.06])
_FROST_CONTRAST = 0.09


def snow(
    images: np.ndarray,
    random: Generators,
    level: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> np.ndarray:
    """Whitens the image and adds falling flakes, and the same flakes rotated by 180 degrees.

    Args:
        images: see the module.
        random: see the module.
        level: mean of the normal noise that the flakes are made from.
        deviation: its standard deviation.
        zoom: magnification of the noise.
        threshold: noise below this is set to 0.
        radius: see `line_blur`. The flakes fall within 45 degrees of the vertical.
        sigma: see `line_blur`.
        keep: the weight of the image before whitening.
    """
    shape = (*images.shape[1:3], 1)
    noise = magnify(draw(random, lambda generator: generator.normal(level, deviation, shape)), zoom)
    flakes = np.where(noise < threshold, 0, np.clip(noise, 0, 1))
    degrees = draw(random, lambda generator: generator.uniform(-135, -45))
    flakes = line_blur(flakes, degrees, radius, sigma)
    white = np.maximum(images, 1.5 * _luminance(images) + 0.5)
    return keep * images + (1 - keep) * white + flakes + flakes[:, ::-1, ::-1]


def _luminance(images: np.ndarray) -> np.ndarray:
    """Returns the luminance of each pixel, ``(N, H, W, 1)``."""
    return images if images.shape[-1] == 1 else (images @ _LUMINANCE)[..., None]


def frost(images: np.ndarray, random: Generators, keep: float, add: float) -> np.ndarray:
    """Adds a bluish crystalline pattern to the image.

    This is a substitute. The published program crops the pattern from five photographs, which this
    package may not distribute. Here the pattern is generated from needles and clouds. It has the
    photographs' mean colour, range of brightness, contrast and, roughly, correlation length.
    Results are not comparable with those on the published CIFAR-10-C.

    Args:
        images: see the module.
        random: see the module.
        keep: the weight of the image.
        add: the weight of the pattern.
    """
    _, height, width, channels = images.shape
    tint = _FROST_TINT if channels == 3 else np.zeros(channels)
    levels = draw(random, lambda generator: generator.uniform(*_FROST_LEVELS))
    crystals = _FROST_CONTRAST * _crystals(random, height, width)
    return keep * images + add * (levels[:, None, None, None] + tint + crystals)


def _crystals(random: Generators, height: int, width: int) -> np.ndarray:
    """Draws patterns ``(N, H, W, 1)``, each with mean 0 and standard deviation 1."""
    needles = []
    for _ in range(2):
        noise = draw(random, lambda generator: generator.normal(size=(height, width, 1)))
        degrees = draw(random, lambda generator: generator.uniform(0, 360))
        needles.append(line_blur(noise, degrees, radius=4, sigma=4))
    pattern = 1.5 * np.maximum(*needles) + clouds(random, height, width, decay=1.5)
    pattern -= pattern.mean((1, 2, 3), keepdims=True)
    return pattern / pattern.std((1, 2, 3), keepdims=True)


def fog(images: np.ndarray, random: Generators, density: float, decay: float) -> np.ndarray:
    """Adds clouds and scales the image so that its maximum does not increase.

    Args:
        images: see the module.
        random: see the module.
        density: the maximum level of the clouds.
        decay: see `clouds`.
    """
    _, height, width, _ = images.shape
    brightest = images.max((1, 2, 3), keepdims=True)
    hazy = images + density * clouds(random, height, width, decay)
    return hazy * brightest / (brightest + density)


def clouds(random: Generators, height: int, width: int, decay: float) -> np.ndarray:
    """Draws plasma fractals by the diamond-square algorithm.

    Args:
        random: N generators.
        height: H in pixels.
        width: W in pixels.
        decay: each halving of the scale divides the amplitude by its square; more is smoother.

    Returns:
        ``(N, H, W, 1)`` float64: the corner of a square map whose side is a power of two. The
        levels of the whole map range from exactly 0 to exactly 1.
    """
    step = side = 1 << (max(height, width) - 1).bit_length()
    noise = draw(random, lambda generator: generator.uniform(-1, 1, (side, side)))
    sky = np.zeros_like(noise)
    amplitude = 1.0
    while step > 1:
        half = step // 2
        # Views of the periodic map: the known corners, and the points that this step fills in.
        corner, middle = sky[:, ::step, ::step], sky[:, half::step, half::step]
        right, below = sky[:, ::step, half::step], sky[:, half::step, ::step]
        rough = amplitude * noise
        row_pair = corner + np.roll(corner, -1, axis=1)
        middle[:] = (row_pair + np.roll(row_pair, -1, axis=2)) / 4 + rough[
            :, half::step, half::step
        ]
        beside = corner + np.roll(corner, -1, axis=2) + middle + np.roll(middle, 1, axis=1)
        right[:] = beside / 4 + rough[:, ::step, half::step]
        beside = corner + np.roll(corner, -1, axis=1) + middle + np.roll(middle, 1, axis=2)
        below[:] = beside / 4 + rough[:, half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    sky -= sky.min((1, 2), keepdims=True)
    sky /= sky.max((1, 2), keepdims=True)
    return sky[:, :height, :width, None]


def brightness(images: np.ndarray, _: Generators, amount: float) -> np.ndarray:
    """Raises the value of each pixel in HSV; hue and saturation do not change.

    Args:
        images: see the module.
        amount: added to the value, in units of [0, 1].
    """
    # Hue and saturation depend on the ratios of the channels only, so value is a common factor.
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + amount, 1)
    lit = value > 0
    return np.where(lit, images * (raised / np.where(lit, value, 1)), raised)
