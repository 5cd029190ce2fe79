"""A function as StableHLO, by `jax.export`: JAX runs it again without the code of its model."""

from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cpu", "cuda", "tpu")


def serialized(function: Callable[..., Any], *shapes: Any) -> bytes:
    """A function with its gradient, for all platforms.

    Args:
        function: of arrays. What it closes over becomes part of it.
        *shapes: of its arguments, pytrees of `jax.ShapeDtypeStruct`; sizes may be symbolic.
    """
    from jax import export

    exported = export.export(jax.jit(function), platforms=PLATFORMS)
    return bytes(exported(*shapes).serialize(vjp_order=1))
