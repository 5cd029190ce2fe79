"""Prune masks: one logit per channel or per weight; a unit is kept while its logit is positive.

Masks are plain dictionaries from a mask's name to its logits. With regularity "channel" there is
one mask per channel group of the architecture, shape (channels,); with "weight" one per kernel,
named after its layer, shape of the kernel.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from irp_jax.models import Architecture, Layer

Regularity = Literal["channel", "weight"]
Masks = dict[str, jax.Array]

START = 1.0
"""Initial logit: every unit is kept, with a soft value of 0.88."""


def units(architecture: Architecture, regularity: Regularity) -> dict[str, int]:
    """Mask name -> how many units it decides about."""
    if regularity == "channel":
        return dict(architecture.groups)
    return {layer.name: layer.weights for layer in maskable(architecture)}


def maskable(architecture: Architecture) -> list[Layer]:
    """The layers whose weights may be masked one by one: all kernels but that of the logits.

    A class whose last weight is gone is lost for good, and the last layer is a small part of the
    cost.
    """
    return [layer for layer in architecture.kernels if layer.writes is not None]


def floors(architecture: Architecture, regularity: Regularity) -> dict[str, int]:
    """Mask name -> how many of its units always stay, so that no layer can die.

    A sixteenth of a channel group. Of a kernel as many weights as it reads and writes channels,
    wherever they lie, but no more than an eighth of it. At least one.
    """
    if regularity == "channel":
        return {name: max(1, size // 16) for name, size in architecture.groups.items()}
    return {
        layer.name: max(1, min(layer.weights // 8, layer.channels_in + layer.channels_out))
        for layer in maskable(architecture)
    }


def init(architecture: Architecture, regularity: Regularity) -> Masks:
    """Logits that keep everything."""
    if regularity == "channel":
        return {
            name: jnp.full((size,), START, jnp.float32)
            for name, size in architecture.groups.items()
        }
    return {
        layer.name: jnp.full(kernel_shape(layer), START, jnp.float32)
        for layer in maskable(architecture)
    }


def kernel_shape(layer: Layer) -> tuple[int, ...]:
    """(k, k, C_in, C_out) for a convolution, (C_in, C_out) for a dense layer."""
    side = math.isqrt(layer.window)
    window = (side, side) if layer.kind == "conv" else ()
    return (*window, layer.channels_in, layer.channels_out)


@jax.custom_jvp
def binarise(logits: jax.Array) -> jax.Array:
    """1 where the soft mask 0.5 tanh(M) + 0.5 rounds up (M > 0), else 0; float32, any shape.

    The gradient passes the rounding straight through (Bengio et al. 2013), so it is that of the
    soft mask: 0.5 (1 - tanh(M)^2) (Vemparala et al. 2021, section 3).
    """
    return (logits > 0).astype(logits.dtype)


@binarise.defjvp
def _binarise_jvp(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    return binarise(logits), slope(logits) * tangent


def slope(logits: jax.Array) -> jax.Array:
    """Derivative of the soft mask, 0.5 (1 - tanh(M)^2), in a form exact for large logits too."""
    return 2.0 * jax.nn.sigmoid(2.0 * logits) * jax.nn.sigmoid(-2.0 * logits)


def gates(masks: Masks) -> Masks:
    """Every mask binarised."""
    return {name: binarise(logits) for name, logits in masks.items()}


def kept(gates: Masks) -> dict[str, jax.Array]:
    """Mask name -> number of units kept, () float32."""
    return {name: gate.sum() for name, gate in gates.items()}


def apply(architecture: Architecture, weights: Any, gates: Masks) -> Any:
    """Weights with everything that is masked out set to zero.

    Masking the channels a layer reads is enough: nobody sees a pruned channel, whatever the layer
    before still computes. Its mask gradient then says what the channel would contribute if it came
    back.

    Args:
        architecture: of the network the weights belong to.
        weights: parameter tree of the network.
        gates: binarised masks; names that are missing mask nothing.

    Returns:
        A tree like `weights`.
    """
    weights = jax.tree.map(lambda leaf: leaf, weights)  # dictionaries of its own
    for layer in architecture.kernels:
        parameters = layer.of(weights)
        if layer.name in gates:
            parameters["kernel"] = parameters["kernel"] * gates[layer.name]
        elif layer.reads in gates:
            parameters["kernel"] = parameters["kernel"] * gates[layer.reads][:, None]
    return weights
