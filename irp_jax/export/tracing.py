"""Traces a network for any number of images."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from irp_jax.errors import UserError, reason


def any_images(image_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    """Returns the shape (N, H, W, C) float32 of any number of images, N symbolic."""
    from jax import export

    (count,) = export.symbolic_shape("n")
    return jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)


@contextlib.contextmanager
def tracing(purpose: str) -> Iterator[None]:
    """Turns an error of a network that is traced into one line.

    Args:
        purpose: what it is traced for, for the message.

    Raises:
        UserError: the block raised an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # JAX and networks raise many types here
        raise UserError(
            f"the network cannot be traced for {purpose} ({reason(error)}): its code must not need "
            f"the number of images as an integer, as in len(images)"
        ) from error
