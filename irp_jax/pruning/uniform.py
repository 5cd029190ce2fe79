"""Uniform pruning: one keep rate for all groups or kernels.

The baselines, which learn no rates, use this rule. Applied to a network before training it is width
scaling, the reference for every pruning method: the same architecture, uniformly narrower, trained
from scratch.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from irp_jax.graph import ChannelGraph, Layer
from irp_jax.pruning import cost, masks


def keep_counts(
    graph: ChannelGraph, granularity: masks.Granularity, kind: cost.Kind, limit: int
) -> dict[str, int]:
    """Returns mask name -> units kept at the largest common keep rate within the budget.

    Every mask keeps the rate times its size, rounded as `models.build` rounds a width, but at least
    one unit. Channel counts are whole numbers, so part of the budget may remain unused.

    Args:
        graph: the graph of the dense network.
        granularity: what a unit is.
        kind: what the budget counts.
        limit: the budget in MACs, parameters or nanoseconds; it must allow one unit in every mask.
    """
    sizes = masks.units(graph, granularity)

    def counts(rate: float) -> dict[str, int]:
        return {name: max(1, round(rate * size)) for name, size in sizes.items()}

    def fits(rate: float) -> bool:
        return cost.total(graph, counts(rate)).of(kind) <= limit

    if fits(1.0):
        return counts(1.0)
    low, high = 0.0, 1.0
    for _ in range(60):  # after that, doubles cannot be halved further
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return counts(low)


def rescale(
    graph: ChannelGraph, params: dict[str, Any], keep_counts: Mapping[str, int]
) -> dict[str, Any]:
    """Rescales compacted initial weights to the distribution of a narrow network's initial weights.

    The usual initialisers draw kernels with a variance of 1 or 2, divided by the number of inputs,
    the number of outputs or the mean of both. The divisor is inferred from the kernel's values.
    Norms and biases do not depend on the width and are unchanged.

    Args:
        graph: the graph of the network before compaction.
        params: name -> initial array, after compaction.
        keep_counts: channel group -> channels kept.
    """
    scaled = dict(params)
    for layer in graph.layers:
        if layer.kernel is not None:
            kernel = np.asarray(params[layer.kernel])
            wide, narrow = _fans(layer, {}), _fans(layer, keep_counts)
            kind = _initialiser(wide, float(np.square(kernel).mean()))
            scaled[layer.kernel] = params[layer.kernel] * math.sqrt(wide[kind] / narrow[kind])
    return scaled


def _initialiser(fans: Mapping[str, float], variance: float) -> str:
    """Returns which of the fans fits a kernel's variance best."""
    if variance <= 0:
        return "in"
    misfits = {
        kind: min(abs(math.log(variance * fan / gain)) for gain in (1, 2))
        for kind, fan in fans.items()
    }
    return min(misfits, key=lambda kind: misfits[kind])


def _fans(layer: Layer, keep_counts: Mapping[str, int]) -> dict[str, float]:
    """Returns a kernel's fan-in, fan-out and their mean, as initialisers count them."""
    channels_in, channels_out = layer.channels(keep_counts)
    window = layer.weights(keep_counts) / (channels_in * channels_out)
    fan_in, fan_out = window * channels_in, window * channels_out
    return {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}
