"""Compaction: converts a masked network to a smaller dense network with the same function."""

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
"""Largest accepted difference between the logits of the masked and the compact network, relative
to the largest logit. A larger difference is no rounding error. A channel that one layer fails to
mask makes a difference hundreds of times as large."""


def keep_indices(masks: Masks) -> dict[str, np.ndarray]:
    """Returns channel group -> indices of the channels kept, ascending, int.

    If a group keeps no channel, the first one is returned, since an array needs one. The masked
    weights that read it are zero, so the function does not change.
    """
    indices = {name: np.flatnonzero(np.asarray(logits) > 0) for name, logits in masks.items()}
    return {name: kept if kept.size else np.zeros(1, int) for name, kept in indices.items()}


def compact_params(graph: ChannelGraph, tree: Any, keep_indices: Mapping[str, np.ndarray]) -> Any:
    """Returns a tree whose arrays hold the kept channels only.

    A leaf is compacted if the last key of its path is the name of one of the network's arrays. So
    the same call works for weights, batch statistics, momentum and whole training states. Other
    leaves are unchanged.

    Args:
        graph: the graph of the network that the tree belongs to.
        tree: any pytree.
        keep_indices: channel group -> indices kept; a missing group keeps all channels.
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
        network: the network as a function of arrays of any width, see `graph.network`.
        params, state: name -> array, or its shape and dtype; values are not used.
        initial: () -> (params, state), the arrays to use if the network's logits are not finite on
            random arrays.

    Returns:
        The largest difference between their logits in inference, relative to the largest logit.

    Raises:
        UserError: the two networks differ, because the graph does not describe all that the
            network computes; or the logits are not finite.
    """
    random = np.random.default_rng(0)
    images = random.uniform(size=(2, *graph.image_shape)).astype(np.float32)
    run = jax.jit(
        lambda params, state: network(params, state, images, train=False)[0],
        compiler_options={"xla_backend_optimization_level": 0},  # compiles faster
    )
    arrays = (
        {name: _drawn(random, array) for name, array in params.items()},
        {name: _drawn(random, array) for name, array in state.items()},
    )
    if not _is_finite(run(*arrays)) and initial is not None:
        arrays = initial()
    if not _is_finite(run(*arrays)):
        raise UserError("the network's logits are not finite on random images: fix it first")
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
                "the network's logits are not finite once channels are masked: for instance, it "
                "divides by the norm of masked weights; make sure that the divisor is not zero"
            )
        small = np.asarray(run(*compact_params(graph, arrays, indices)))
        scale = max(float(np.abs(masked).max()), 1e-6)
        worst = float(np.maximum(worst, np.abs(masked - small).max() / scale))
    if not worst <= TOLERANCE:
        raise UserError(
            f"the network cannot be pruned: the masked and the compact network differ by "
            f"{worst:.1g} of the largest logit; please report this network as a defect of irp_jax"
        )
    return worst


def _is_finite(logits: Any) -> bool:
    return bool(np.isfinite(np.asarray(logits, np.float32)).all())


def _drawn(random: np.random.Generator, array: Any) -> np.ndarray:
    """Draws values that keep signals in range: kernels of usual variance, others in [0.5, 1.5)."""
    shape = np.shape(array)
    if not jnp.issubdtype(array.dtype, np.floating):
        return np.zeros(shape, array.dtype)
    if len(shape) > 1:
        values = random.normal(0, math.sqrt(2 * max(shape) / math.prod(shape)), shape)
    else:
        values = random.uniform(0.5, 1.5, shape)
    return values.astype(array.dtype)
