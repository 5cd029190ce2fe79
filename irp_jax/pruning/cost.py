"""What a network costs as a function of the units it keeps: exact in integers, smooth in floats.

A layer costs window x positions x channels_in x channels_out multiply-accumulates (MACs) per image
and window x channels_in x channels_out weights, with the channel counts those of the groups it
reads and writes. FLOPs are twice the MACs. Norms and biases cost parameters; their arithmetic can
be folded into the convolution before them, so by the field's custom it is not counted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from irp_jax.models import Architecture, Layer

Kind = Literal["macs", "params"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs per image and number of trained parameters (mask logits excluded)."""

    macs: Any
    params: Any

    def of(self, kind: Kind) -> Any:
        """What a budget of this kind counts."""
        return self.macs if kind == "macs" else self.params


def layer_cost(layer: Layer, kept: Mapping[str, Any]) -> Cost:
    """Cost of one layer.

    Args:
        layer: the layer.
        kept: mask name -> units kept, integers or scalars of any array library; what is not named
            is kept whole.
    """
    channels_in, channels_out = layer.channels(kept)
    if layer.kind == "norm":
        return Cost(macs=0, params=2 * channels_out)
    weights = kept.get(layer.name, layer.window * channels_in * channels_out)
    biases = channels_out if layer.bias else 0
    return Cost(macs=weights * layer.positions, params=weights + biases)


def total(architecture: Architecture, kept: Mapping[str, Any] | None = None) -> Cost:
    """Cost of the network, the dense one without `kept`; exact when that holds Python integers."""
    costs = [layer_cost(layer, kept or {}) for layer in architecture.layers]
    return Cost(macs=sum(c.macs for c in costs), params=sum(c.params for c in costs))


def ratio(architecture: Architecture, kind: Kind, kept: Mapping[str, Any]) -> Any:
    """Cost of one kind as a fraction of the dense network's, differentiable in `kept`.

    Every layer is divided by the dense total before summing, so that float32 is precise enough.
    """
    # A float, since the MACs of a large network do not fit the int32 that JAX makes of an integer.
    dense = float(total(architecture).of(kind))
    return sum(layer_cost(layer, kept).of(kind) / dense for layer in architecture.layers)


def table(
    architecture: Architecture, kept: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """One row per kernel: name, kept and dense channels, MACs and parameters, dense MACs."""
    kept = kept or {}
    rows = []
    for layer in architecture.kernels:
        cost, dense = layer_cost(layer, kept), layer_cost(layer, {})
        channels_in, channels_out = layer.channels(kept)
        rows.append(
            {
                "layer": layer.name,
                "channels_in": channels_in,
                "channels_out": channels_out,
                "dense_channels_in": layer.channels_in,
                "dense_channels_out": layer.channels_out,
                "macs": cost.macs,
                "dense_macs": dense.macs,
                "params": cost.params,
                "dense_params": dense.params,
            }
        )
    return rows
