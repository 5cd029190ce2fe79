"""Compaction: from a masked network to the arrays of the small dense network of equal function."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.errors import UserError
from irp_jax.graph import Apply, ChannelGraph
from irp_jax.pruning import masks as masking
from irp_jax.pruning.masks import Masks

TOLERANCE = 1e-3
"""Difference between the logits of a masked and a compact network that is no rounding error,
relative to the largest logit. A channel that leaks makes hundreds of times as much."""


def keep_indices(masks: Masks) -> dict[str, np.ndarray]:
    """Channel group -> indices of the channels kept, ascending, int.

    A group of which nothing is kept yields its first channel, since an array needs one. Masked
    weights read that channel with weight zero, so the function does not change.
    """
    indices = {name: np.flatnonzero(np.asarray(logits) > 0) for name, logits in masks.items()}
    return {name: kept if kept.size else np.zeros(1, int) for name, kept in indices.items()}


def compact_params(graph: ChannelGraph, tree: Any, keep_indices: Mapping[str, np.ndarray]) -> Any:
    """The kept channels of every array in a tree.

    A leaf is compacted if the last key of its path names one of the network's arrays: weights,
    batch statistics, momentum and whole training states are compacted alike. Other leaves stay.

    Args:
        graph: of the network the tree belongs to.
        tree: any pytree.
        keep_indices: channel group -> indices kept; groups that are missing are kept whole.
    """

    def compact_leaf(path: Any, leaf: Any) -> Any:
        extents = graph.arrays.get(str(getattr(path[-1], "key", "")), ()) if path else ()
        for axis, extent in enumerate(extents):
            if any(group in keep_indices for group in extent.groups):
                leaf = np.take(np.asarray(leaf), extent.indices(keep_indices), axis)
        return leaf

    return jax.tree_util.tree_map_with_path(compact_leaf, tree)


def check(
    graph: ChannelGraph,
    network: Apply,
    params: Any,
    state: Any,
    initial: Callable[[], tuple[Any, Any]] | None = None,
) -> float:
    """Compares the masked with the compact network by value, on random arrays and masks.

    Args:
        graph: the channel graph.
        network: the function that it was read off, see `graph.network`.
        params, state: name -> array, or its shape and dtype; values play no part.
        initial: () -> (params, state) to compare with where the network has no finite logits on
            random arrays.

    Returns:
        The largest difference between their logits in inference, relative to the largest logit.

    Raises:
        UserError: they differ: the network does something that the graph does not know of. Or its
            logits are no numbers.
    """
    random = np.random.default_rng(0)
    images = random.uniform(size=(2, *graph.image_shape)).astype(np.float32)
    run = jax.jit(
        lambda params, state: network(params, state, images, train=False)[0],
        compiler_options={"xla_backend_optimization_level": 0},  # it runs a few times only
    )
    arrays = (
        {name: _drawn(random, array) for name, array in params.items()},
        {name: _drawn(random, array) for name, array in state.items()},
    )
    if not _is_finite(run(*arrays)) and initial is not None:
        arrays = initial()
    if not _is_finite(run(*arrays)):
        raise UserError("the network's logits are not finite on random images: mend it first")
    worst = 0.0
    for share in (0.25, 0.75):
        logits: Masks = {
            name: jnp.where(random.permutation(size) < max(1, round(share * size)), 1.0, -1.0)
            for name, size in graph.groups.items()
        }
        indices = keep_indices(logits)
        masked = np.asarray(run(masking.apply(graph, arrays[0], masking.gates(logits)), arrays[1]))
        if not _is_finite(masked):
            raise UserError(
                "the network's logits are not finite once channels are masked: it divides by the "
                "size of what a kernel reads, for instance; keep that from being zero"
            )
        small = np.asarray(run(*compact_params(graph, arrays, indices)))
        scale = max(float(np.abs(masked).max()), 1e-6)
        worst = float(np.maximum(worst, np.abs(masked - small).max() / scale))
    if not worst <= TOLERANCE:
        raise UserError(
            f"the network cannot be pruned: masked and compacted it differs by {worst:.1g} of its "
            f"largest logit; please report it, with the network, as a defect of irp_jax"
        )
    return worst


def _is_finite(logits: Any) -> bool:
    return bool(np.isfinite(np.asarray(logits, np.float32)).all())


def _drawn(random: np.random.Generator, array: Any) -> np.ndarray:
    """Random values that no layer drowns: kernels of the usual size, all else near one."""
    shape = np.shape(array)
    if not jnp.issubdtype(array.dtype, np.floating):
        return np.zeros(shape, array.dtype)
    if len(shape) > 1:
        values = random.normal(0, math.sqrt(2 * max(shape) / math.prod(shape)), shape)
    else:
        values = random.uniform(0.5, 1.5, shape)
    return values.astype(array.dtype)
