"""Random crop, flip and cutout on the device, on uint8 images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from irp_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random changes to each training image; the default does nothing.

    Attributes:
        crop_padding: width in pixels of a black border. The image is padded with it, then cropped
            to its own size at a uniformly random place; 0 switches cropping off.
        flip: whether an image is mirrored left to right with probability one half.
        cutout: side in pixels of a square that is set to black. Its centre is uniform over the
            image, so part of the square may lie outside; 0 switches cutout off.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for field in ("crop_padding", "cutout"):
            if getattr(self, field) < 0:
                raise UserError(
                    f"{field} must be 0 (off) or a number of pixels, got {getattr(self, field)}"
                )


@functools.partial(jax.jit, static_argnames="policy")
def augment(key: jax.Array, images: jax.Array, policy: Augmentation) -> jax.Array:
    """Changes each image at random, independently of the others.

    Args:
        key: a PRNG key; equal keys give equal results.
        images: ``(N, H, W, C)`` uint8.
        policy: the changes; a static argument of the compiled program.

    Returns:
        ``(N, H, W, C)`` uint8. Each pixel is 0 or a pixel of the same image. The default policy
        returns the images unchanged.

    References:
        Crop and flip: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
        Cutout: DeVries and Taylor, arXiv:1708.04552.
    """
    crop_key, flip_key, cutout_key = jax.random.split(key, 3)
    if policy.crop_padding:
        images = _crop(crop_key, images, policy.crop_padding)
    if policy.flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if policy.cutout:
        images = _cutout(cutout_key, images, policy.cutout)
    return images


def augment_each(keys: jax.Array, images: jax.Array, policy: Augmentation) -> jax.Array:
    """Applies `augment` with one key per image, so that each result depends on its image only.

    Args:
        keys: (N,) PRNG keys.
        images: (N, H, W, C), of any dtype.
        policy: the changes.
    """
    return jax.vmap(lambda key, image: augment(key, image[None], policy)[0])(keys, images)


def view_keys(key: jax.Array, view: jax.Array | int, indices: jax.Array) -> jax.Array:
    """Returns a key for each image that depends only on `key`, the view and the image's index.

    Args:
        key: the key of the run.
        view: () int32, number of the view: the epoch, or a smaller number if views are repeated.
        indices: (N,) int32, positions of the images in the data set.

    Returns:
        (N,) PRNG keys.
    """
    # No step has this number, so no other key of the run is equal to this one.
    own = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 3), view)
    return jax.vmap(jax.random.fold_in, (None, 0))(own, indices)


def _crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Crops each padded image to its original size at a random place."""
    number, height, width, channels = images.shape
    margin = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    corners = jax.random.randint(key, (number, 2), 0, 2 * padding + 1)

    def window(padded: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(padded, start, (height, width, channels))

    return jax.vmap(window)(jnp.pad(images, margin), corners)


def _cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Sets one square in each image to black."""
    number, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (number, 1), 0, height) - side // 2
    left = jax.random.randint(column_key, (number, 1), 0, width) - side // 2
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    square = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return jnp.where(square, jnp.uint8(0), images)


def to_float(images: jax.Array) -> jax.Array:
    """Converts pixel levels to the unit interval.

    Args:
        images: any shape, uint8.

    Returns:
        The same shape, float32, in [0, 1]: level / 255.
    """
    return images.astype(jnp.float32) / jnp.float32(255)
