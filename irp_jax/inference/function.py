"""The network in inference mode: its function, and the variables that it is deployed with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import masks, sparse
from irp_jax.quantization import Quantization, emulated


def inference(
    network: Callable, quantization: Quantization | None = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the network in inference mode: (variables, images) -> logits.

    It and its gradients are computed in full float32 precision on every device, as ensured by
    `graph.network`. The functions for equal arguments are equal, so that JAX compiles them once.

    Args:
        network: see `graph.network`.
        quantization: rounds weights and activations; None for none.
    """
    return _Inference(emulated(network, quantization))


@dataclasses.dataclass(frozen=True)
class _Inference:
    network: Callable

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        return self.network(variables["params"], variables["batch_stats"], images, train=False)[0]


@functools.partial(jax.jit, static_argnums=0)
def deployed(graph: ChannelGraph, params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the variables of the network for deployment: masks are binarised and applied.

    Args:
        graph: the channel graph of the dense network.
        params: {"weights", "masks"}.
        batch_stats: name -> array.
    """
    weights = masks.apply(graph, params["weights"], masks.gates(params["masks"]))
    # -0 becomes 0. A negative weight times a gate of 0 is -0, but a packed kernel stores it as 0.
    # The same network must have the same `checkpoint.digest`.
    weights = jax.tree.map(lambda leaf: jnp.where(leaf == 0, jnp.zeros_like(leaf), leaf), weights)
    return {"params": weights, "batch_stats": batch_stats}


def network_params(graph: ChannelGraph, network: dict[str, Any]) -> dict[str, Any]:
    """Returns {"weights", "masks"} of a checkpoint's network item, whose kernels may be packed."""
    weights, frozen = sparse.unpack(graph, network["weights"])
    return {"weights": weights, "masks": frozen or network["masks"]}
