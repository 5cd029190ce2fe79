"""Reads one image file: decodes it, crops it and resizes it to a square of a fixed size."""

import math
from pathlib import Path

import numpy as np

from irp_jax.errors import UserError, extra

CENTRE = 7 / 8
"""Side of the centre square that is kept, as a share of the shorter side: 224 of 256 pixels. It is
the usual evaluation on ImageNet."""

SMALLEST = 0.25
"""Smallest share of the area that a random crop keeps."""

STRETCH = 4 / 3
"""Largest ratio of the sides of a random crop."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""


def decode(path: Path, side: int, random: np.random.Generator | None = None) -> np.ndarray:
    """Returns the pixels of an image file.

    Args:
        path: a JPEG or PNG file. Grey images become colour images, and transparency is ignored.
            Of a colour PNG with 16 bits a channel, the upper 8 are used; a grey one is refused.
        side: height and width of the result.
        random: draws the part of the image that is kept: a share of the area that is uniform in
            [`SMALLEST`, 1], with sides in a ratio of up to `STRETCH`, at a uniform place. None
            keeps the centre square, or all of an image that has the right size already.

    Returns:
        (side, side, 3) uint8.

    Raises:
        UserError: the file is no image or cannot be read, or Pillow is missing.

    References:
        Random crops: Szegedy et al. 2015 ("Going deeper with convolutions"), section 6, with a
        smallest share of 0.08.
    """
    with extra("folders"):
        from PIL import Image

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise UserError(f"{path} has 16 bits for each pixel: save it with 8 bits a channel")
            size = image.size
            box = _central(size, side) if random is None else _drawn(size, random)
            # A JPEG file can be decoded at a half, a quarter or an eighth of its size, which takes
            # much less time. `draft` chooses the smallest that the result does not exceed.
            share = [side / (box[2] - box[0]), side / (box[3] - box[1])]
            image.draft(None, (math.ceil(size[0] * share[0]), math.ceil(size[1] * share[1])))
            across, down = (now / before for now, before in zip(image.size, size, strict=True))
            scaled = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            # Pillow warns if a palette's transparency is dropped at once.
            whole = image.convert("RGBA") if image.mode == "P" else image
            pixels = whole.convert("RGB").resize(
                (side, side), Image.Resampling.BILINEAR, box=scaled
            )
            return np.asarray(pixels)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone: restore it and give the same command again") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read: change its permissions") from error
    except Exception as error:  # Pillow raises errors of many types for damaged files
        reason = str(error).replace(str(path), "the file").replace(repr(str(path)), "the file")
        raise UserError(
            f"{path} is damaged or no JPEG or PNG image ({reason}): replace or remove it"
        ) from error


def _central(size: tuple[int, int], side: int) -> Box:
    """Returns the centre square; the whole image if it has the right size."""
    width, height = size
    kept = side if size == (side, side) else CENTRE * min(size)
    left, upper = (width - kept) / 2, (height - kept) / 2
    return left, upper, left + kept, upper + kept


def _drawn(size: tuple[int, int], random: np.random.Generator) -> Box:
    """Returns a random part of an image."""
    width, height = size
    area = width * height * random.uniform(SMALLEST, 1)
    ratio = math.exp(random.uniform(-1, 1) * math.log(STRETCH))
    across, down = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, upper = random.uniform() * (width - across), random.uniform() * (height - down)
    return left, upper, left + across, upper + down
