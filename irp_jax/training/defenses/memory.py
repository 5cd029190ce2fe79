"""A memory of every training image that follows it through crops and flips."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def recall(
    memory: Any, indices: jax.Array, move: Callable[[jax.Array], jax.Array]
) -> tuple[Any, Callable[[Any], Any]]:
    """What is remembered of a batch, moved as its images are, and a way to store it again.

    The way back is the transpose of the way there: cropping and flipping only copy pixels, each at
    most once, so their transpose puts each pixel back where it was taken from.

    Args:
        memory: pytree of integer arrays (M, H, W, C) in the frame of the unaugmented images; None
            for no memory at all. Integers, because XLA's CPU backend converts the whole of a
            16-bit or 8-bit float array whenever a row of it is written.
        indices: (N,) int32, which images the batch is of; no image twice.
        move: crops and flips a batch (N, H, W, C); linear, and no pixel copied twice.

    Returns:
        The batch's rows, every leaf (N, H, W, C) float32, and a function: such rows of new whole
        numbers -> the memory with them. Pixels that the crop left out keep what they had.
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
