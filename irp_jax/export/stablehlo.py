"""Serializes a function as StableHLO. JAX can run it without the code of the model."""

from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cpu", "cuda", "tpu")


def serialized(function: Callable[..., Any], *shapes: Any) -> bytes:
    """Serializes a function and its gradient for all `PLATFORMS`, with `jax.export`.

    Args:
        function: a function of arrays. Arrays that it closes over are stored with it.
        *shapes: a pytree of `jax.ShapeDtypeStruct` for each argument. Sizes may be symbolic.
    """
    from jax import export

    exported = export.export(jax.jit(function), platforms=PLATFORMS)
    return bytes(exported(*shapes).serialize(vjp_order=1))
