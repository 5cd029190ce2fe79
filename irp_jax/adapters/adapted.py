"""A network as pure functions of named arrays, whatever library it is of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from irp_jax.adapters.leaves import Arrays

Shape = tuple[int, int, int]
"""(height, width, channels) of an image."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """A network as pure functions of flat dicts of arrays.

    Attributes:
        apply: (params, state, images, train, key) -> (logits, state). Images are (N, H, W, C)
            float32 in [0, 1]. `train` is a Python bool. The key is a typed PRNG key, of which only
            training makes use. Logits are what the network returns, (N, K) if all is well. The
            state has the shapes and dtypes it had; without `train` it is returned unchanged.
        init: key -> (params, state), for `jax.jit` and `jax.eval_shape`, too. Weights that the
            network was given with are returned as copies, whatever the key.
        kind: "linen", "nnx", "equinox" or "function".
        name: of the network's class or function.
        image_shape: (H, W, C) of one image.
    """

    apply: Callable[[Arrays, Arrays, jax.Array, bool, Any], tuple[Any, Arrays]]
    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    kind: str
    name: str
    image_shape: Shape
