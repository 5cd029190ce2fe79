"""The common form of networks of all libraries: pure functions of named arrays."""

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
            float32 in [0, 1]. `train` is a Python bool. The key is a typed PRNG key, which only
            training uses. Logits are the network's output, unchecked; they should be (N, K). The
            state keeps its shapes and dtypes; without `train` it is returned unchanged.
        init: key -> (params, state); it works under `jax.jit` and `jax.eval_shape`. If the network
            already has weights, it returns copies of them for every key.
        kind: "linen", "nnx", "equinox" or "function".
        name: the name of the network's class or function.
        image_shape: (H, W, C) of one image.
    """

    apply: Callable[[Arrays, Arrays, jax.Array, bool, Any], tuple[Any, Arrays]]
    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    kind: str
    name: str
    image_shape: Shape
