"""Masked network -> the small dense network that computes the same function."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from irp_jax.errors import UserError
from irp_jax.models import Architecture, Layer
from irp_jax.pruning.masks import Masks


def surviving(masks: Masks) -> dict[str, np.ndarray]:
    """Channel group -> indices of the channels kept, ascending, int.

    A group of which nothing is kept yields its first channel, since arrays of no channels are of no
    use; cut from masked weights it is read with weight zero, which changes nothing.
    """
    indices = {name: np.flatnonzero(np.asarray(logits) > 0) for name, logits in masks.items()}
    return {name: kept if kept.size else np.zeros(1, int) for name, kept in indices.items()}


def architecture(dense: Architecture, kept: Mapping[str, int]) -> Architecture:
    """The architecture with every channel group cut to the size given for it."""

    def cut_layer(layer: Layer) -> Layer:
        channels_in, channels_out = layer.channels(kept)
        return dataclasses.replace(layer, channels_in=channels_in, channels_out=channels_out)

    return Architecture(tuple(cut_layer(layer) for layer in dense.layers))


def cut(dense: Architecture, tree: Any, survivors: Mapping[str, np.ndarray]) -> Any:
    """The surviving channels of every array in a tree that is laid out like the network's.

    A leaf belongs to a layer if its path ends with the layer's path and the leaf's own name, so
    weights, batch statistics, momentum and whole training states can be cut alike; other leaves
    stay.

    Args:
        dense: the architecture the tree belongs to.
        tree: any pytree.
        survivors: channel group -> indices kept; groups that are missing are kept whole.
    """
    layers = {layer.path: layer for layer in dense.layers}
    # Longest first: a layer inside a block may have the name of one outside.
    depths = sorted({len(path) for path in layers}, reverse=True)

    def cut_leaf(path, leaf):
        keys = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        for depth in depths:
            layer = layers.get(keys[-depth - 1 : -1])
            if layer is not None:
                return _take(layer, keys[-1], leaf, survivors)
        return leaf

    return jax.tree_util.tree_map_with_path(cut_leaf, tree)


def check(dense: Architecture, network: Callable[..., Any], variables: Any, images: Any) -> None:
    """Refuses a network that does not run with fewer channels, before it is trained.

    Args:
        dense: its architecture.
        network: (weights, batch_stats, images, train) -> logits, batch_stats.
        variables: its "params" and "batch_stats", or their shapes.
        images: a batch, or its shape.

    Raises:
        UserError: with fewer channels, not as many fewer in every group, its layers do not fit
            together.
    """
    # Groups of one size lose different numbers, but keep two: one channel would broadcast.
    alike: Counter[int] = Counter()
    fewer = {}
    for name, size in dense.groups.items():
        lost = 1 + alike[size] % max(1, size - 2)
        fewer[name] = np.arange(max(1, size - lost))
        alike[size] += 1

    def small(variables: Any, images: Any) -> Any:
        variables = cut(dense, variables, fewer)
        stats = variables.get("batch_stats", {})
        logits, _ = network(variables["params"], stats, images, train=False)
        return logits

    try:
        jax.eval_shape(small, variables, images)
    except Exception as error:  # whatever its layers raise
        raise UserError(
            "the network does not run with fewer channels in its groups, so it cannot be pruned: "
            f"each layer must name the groups it reads and writes ({type(error).__name__})"
        ) from error


def _take(layer: Layer, name: str, array: Any, survivors: Mapping[str, np.ndarray]) -> Any:
    if name == "kernel" and layer.reads is not None and layer.reads in survivors:
        array = array[..., survivors[layer.reads], :]
    if layer.writes is not None and layer.writes in survivors:
        array = array[..., survivors[layer.writes]]
    return array
