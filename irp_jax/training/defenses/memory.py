"""A memory of every training image that is cropped and mirrored with the image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def recall(
    memory: Any, indices: jax.Array, move: Callable[[jax.Array], jax.Array]
) -> tuple[Any, Callable[[Any], Any]]:
    """Returns the memory of a batch, augmented like its images, and a function to store it.

    Storing uses the transpose of `move`. Cropping and flipping only copy pixels, each at most once,
    so the transpose puts each pixel back to where it came from.

    Args:
        memory: pytree of integer arrays (M, H, W, C) in the frame of the unaugmented images; None
            without a memory. The arrays are integers, because XLA's CPU backend converts a whole
            16-bit or 8-bit float array whenever one of its rows is written.
        indices: (N,) int32, images of the batch, all different.
        move: crops and flips a batch (N, H, W, C); linear, and copies no pixel twice.

    Returns:
        The rows of the batch, every leaf (N, H, W, C) float32, and a function: such rows with new
        whole numbers -> the memory with these rows. Pixels outside the crop keep their values.
    """
    rows = jax.tree.map(lambda leaf: leaf[indices].astype(jnp.float32), memory)
    seen, transpose = jax.vjp(lambda tree: jax.tree.map(move, tree), rows)

    def store(changed: Any) -> Any:
        (change,) = transpose(jax.tree.map(jnp.subtract, changed, seen))
        return jax.tree.map(
            lambda leaf, row, more: leaf.at[indices].set((row + more).astype(leaf.dtype)),
            memory, rows, change,
        )  # fmt: skip

    return seen, store
