"""The table of corruptions by name and severity, and the function that applies them."""

from collections.abc import Callable, Mapping

import numpy as np

from irp_jax.data.corruptions import blur, digital, noise, weather
from irp_jax.data.corruptions.draws import generators
from irp_jax.errors import UserError, unknown

SEVERITIES = (1, 2, 3, 4, 5)

# Each corruption with its constants for the five severities, those of the published CIFAR-10-C.
_TABLE: Mapping[str, tuple[Callable[..., np.ndarray], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (noise.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (
        blur.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (blur.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (blur.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (weather.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (digital.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (digital.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
}

CORRUPTIONS: tuple[str, ...] = tuple(_TABLE)

_LEAST_SIDE = 8
_CHUNK = 128  # bounds the memory of the float64 copies


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Corrupts each image at random, independently of the others.

    The constants are those of CIFAR-10-C. Lengths are in pixels, so larger images are corrupted
    less. Three things differ from the published files. The random numbers are others. Levels are
    rounded and not truncated, which makes them half a level brighter on average. Frost is a
    substitute (see `weather.frost`), and its results are not comparable with published ones.

    Args:
        images: ``(N, H, W, C)`` uint8, H and W at least 8, C 1 or 3.
        name: one of `CORRUPTIONS`.
        severity: one of `SEVERITIES`: 1 is the mildest, 5 the strongest.
        seed: in ``[0, 2^32)``.
        indices: ``(N,)`` integers, the position of each image in its set; None means 0 to N - 1.

    Returns:
        ``(N, H, W, C)`` uint8. An image's random numbers depend on its index, the seed, the
        name and the severity only. A subset with its indices is corrupted as in the whole set.

    Raises:
        UserError: an argument is invalid.

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019, section 3 and appendix A; constants as in ``make_cifar_c.py`` of
        https://github.com/hendrycks/robustness.

    >>> corrupt(np.full((1, 8, 8, 1), 100, np.uint8), "brightness", 5)[0, 0, 0]
    array([176], dtype=uint8)
    """
    if name not in _TABLE:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UserError(
            f"severity must be 1, 2, 3, 4 or 5, got {severity}: 1 is the mildest, 5 the strongest"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be in [0, 2^32), got {seed}")
    _check_images(images)
    function, constants = _TABLE[name]
    indices = np.arange(len(images)) if indices is None else indices
    if len(indices) != len(images):
        raise UserError(f"each image needs an index: got {len(images)} and {len(indices)}")
    corrupted = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        random = generators(seed, indices[chunk], name, severity)
        result = function(images[chunk] / 255, random, *constants[severity - 1])
        corrupted[chunk] = np.rint(255 * np.clip(result, 0, 1))
    return corrupted


def _check_images(images: np.ndarray) -> None:
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
        raise UserError(
            f"images must be uint8 of shape (N, H, W, 1 or 3), got {images.dtype} of shape {shape}"
        )
    if min(shape[1:3]) < _LEAST_SIDE:
        raise UserError(
            f"images must be at least {_LEAST_SIDE} x {_LEAST_SIDE} pixels to be corrupted, "
            f"got {shape[1]} x {shape[2]}"
        )
