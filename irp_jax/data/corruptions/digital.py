"""Digital corruptions: contrast, warps, low resolution and JPEG compression.

For the arguments that all corruptions share, see `irp_jax.data.corruptions.noise`.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from irp_jax.data.corruptions.draws import Generators, draw


def contrast(images: np.ndarray, _: Generators, factor: float) -> np.ndarray:
    """Moves each channel towards its mean over the image.

    Args:
        images: see the module.
        factor: factor on a pixel's distance from the mean.
    """
    mean = images.mean((1, 2), keepdims=True)
    return mean + factor * (images - mean)


def elastic_transform(
    images: np.ndarray, random: Generators, push: float, smoothness: float, shear: float
) -> np.ndarray:
    """Applies a random affine map to each image, given by three points, and then a local warp.

    All lengths are in units of the image's shorter side.

    Args:
        images: see the module.
        random: see the module.
        push: the largest local displacement, before smoothing.
        smoothness: standard deviation of the Gaussian that smooths the displacements.
        shear: the largest displacement of the three points along each axis.
    """
    _, height, width, _ = images.shape
    side = min(height, width)
    points = np.array([height // 2, width // 2]) + side // 3 * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + shear * side * draw(random, lambda generator: generator.uniform(-1, 1, (3, 2)))
    pushes = draw(random, lambda generator: generator.uniform(-1, 1, (2, height, width)))
    spread = (0, 0, smoothness * side, smoothness * side)
    pushes = push * side * ndimage.gaussian_filter(pushes, spread, mode="reflect", truncate=3)

    # The inverse map, from the moved points back, gives the source of each pixel of the result.
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(moved), 3, 1))], -1), points)
    pixels = np.indices((height, width)).astype(float)
    homogeneous = np.concatenate([pixels, np.ones((1, height, width))])
    sources = np.einsum("pyx,npa->nayx", homogeneous, back)
    # Two interpolations, as published. They blur more than one.
    return _sample(_sample(images, sources, "mirror"), pixels + pushes, "reflect")


def _sample(images: np.ndarray, places: np.ndarray, border: str) -> np.ndarray:
    """Interpolates images bilinearly at places ``(N, 2, H, W)``, row then column."""
    sampled = np.empty_like(images)
    for image, place, result in zip(images, places, sampled, strict=True):
        for channel in range(image.shape[-1]):
            result[..., channel] = ndimage.map_coordinates(
                image[..., channel], place, order=1, mode=border
            )
    return sampled


def pixelate(images: np.ndarray, _: Generators, fraction: float) -> np.ndarray:
    """Shrinks the image by averaging and enlarges it again by repeating pixels.

    Args:
        images: see the module.
        fraction: side of the small image divided by that of the large one.
    """

    def change(picture: Image.Image) -> Image.Image:
        small = (int(picture.width * fraction), int(picture.height * fraction))
        shrunk = picture.resize(small, Image.Resampling.BOX)
        return shrunk.resize(picture.size, Image.Resampling.BOX)

    return _through_pillow(images, change)


def jpeg_compression(images: np.ndarray, _: Generators, quality: int) -> np.ndarray:
    """Writes the image as JPEG and reads it again.

    Args:
        images: see the module.
        quality: 1 to 95, Pillow's scale.
    """

    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file, formats=("JPEG",))

    return _through_pillow(images, change)


def _through_pillow(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Applies a function of one Pillow image, grey or RGB, to each image."""
    levels = np.rint(255 * images).astype(np.uint8)
    if images.shape[-1] == 1:
        levels = levels[..., 0]
    changed = np.stack([np.asarray(change(Image.fromarray(level))) for level in levels])
    return changed.reshape(images.shape) / 255
