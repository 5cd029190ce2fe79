"""One keep rate for all groups or kernels: how many units that leaves, and training those alone.

The rule of the baselines, which learn no rates. Cutting a network that has not been trained yet is
width scaling, the yardstick of every pruning method: the same architecture, uniformly narrower,
trained from scratch.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax

from irp_jax.models import Architecture
from irp_jax.pruning import cost, masks


def kept(
    architecture: Architecture, regularity: masks.Regularity, kind: cost.Kind, limit: int
) -> dict[str, int]:
    """Mask name -> units kept by the largest common keep rate that the budget allows.

    Every mask keeps the rate times its size, rounded as `models.build` rounds a width, but at least
    one unit. Channel counts are coarse, so some of the budget may stay unspent.

    Args:
        architecture: of the dense network.
        regularity: what a unit is.
        kind: what the budget counts.
        limit: the budget in MACs or parameters; enough for one unit a mask.
    """
    sizes = masks.units(architecture, regularity)

    def counts(rate: float) -> dict[str, int]:
        return {name: max(1, round(rate * size)) for name, size in sizes.items()}

    def fits(rate: float) -> bool:
        return cost.total(architecture, counts(rate)).of(kind) <= limit

    if fits(1.0):
        return counts(1.0)
    low, high = 0.0, 1.0
    for _ in range(60):  # beyond that doubles have no middle
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return counts(low)


def rescale(dense: Architecture, weights: Any, kept: Mapping[str, int]) -> Any:
    """Makes the cut of a wide network's initial weights a draw from the narrow one's distribution.

    Initial kernels vary by 2 / fan_out in a convolution and by 1 / fan_in in a dense layer
    (models/layers.py), else they are alike; norms and biases do not depend on the width.

    Args:
        dense: the architecture before the cut.
        weights: parameter tree after it.
        kept: channel group -> channels kept.
    """
    layers = {layer.path: layer for layer in dense.kernels}

    def scaled(path: Any, leaf: Any) -> Any:
        *where, name = (key.key for key in path)
        if name != "kernel":
            return leaf
        layer = layers[tuple(where)]
        channels_in, channels_out = layer.channels(kept)
        conv = layer.kind == "conv"
        shrunk = channels_out / layer.channels_out if conv else channels_in / layer.channels_in
        return leaf / math.sqrt(shrunk)

    return jax.tree_util.tree_map_with_path(scaled, weights)
