"""What a network costs as a function of the units it keeps: exact in integers, smooth in floats.

A convolution costs window x positions x channels_in x channels_out multiply-accumulates (MACs) per
image, with the channel counts those of the groups it reads and writes; a matrix product likewise.
FLOPs are twice the MACs. Norms and biases cost parameters; their arithmetic can be folded into the
convolution before them, so by the field's custom it is not counted.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from irp_jax.graph import ChannelGraph, Extent

Kind = Literal["macs", "params"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs per image and number of trained parameters (mask logits excluded)."""

    macs: Any
    params: Any

    def of(self, kind: Kind) -> Any:
        """What a budget of this kind counts."""
        return self.macs if kind == "macs" else self.params


def total(graph: ChannelGraph, keep_counts: Mapping[str, Any] | None = None) -> Cost:
    """Cost of a network.

    Args:
        graph: of the dense network.
        keep_counts: group -> channels kept, or name of a kernel -> weights kept; integers or
            scalars of any array library. What is not named is kept whole.

    Returns:
        Exact whole numbers where `keep_counts` holds Python integers.
    """
    keep_counts = keep_counts or {}
    return Cost(
        macs=sum(layer.macs(keep_counts) for layer in graph.layers),
        params=sum(_size(name, extents, keep_counts) for name, extents in graph.params.items()),
    )


def _size(name: str, extents: tuple[Extent, ...], keep_counts: Mapping[str, Any]) -> Any:
    return (
        keep_counts[name]
        if name in keep_counts
        else math.prod(extent.count(keep_counts) for extent in extents)
    )


def ratio(graph: ChannelGraph, kind: Kind, keep_counts: Mapping[str, Any]) -> Any:
    """Cost of one kind as a fraction of the dense network's, differentiable in `keep_counts`.

    Every layer is divided by the dense total before summing, so that float32 is precise enough.
    """
    # A float, since the MACs of a large network do not fit the int32 that JAX makes of an integer.
    dense = float(total(graph).of(kind))
    if kind == "macs":
        return sum(layer.macs(keep_counts) / dense for layer in graph.layers)
    return sum(_size(name, extents, keep_counts) / dense for name, extents in graph.params.items())


def table(
    graph: ChannelGraph, keep_counts: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """One row per layer: name, kept and dense channels, MACs and parameters of its kernel."""
    keep_counts = keep_counts or {}
    rows, seen = [], set()
    for layer in graph.layers:
        channels_in, channels_out = layer.channels(keep_counts)
        dense_in, dense_out = layer.channels({})
        # Of a kernel that several layers share, the first.
        new = layer.kernel is not None and layer.kernel not in seen
        owned = (layer.kernel, graph.params[layer.kernel]) if layer.kernel and new else ()
        seen.add(layer.kernel)
        rows.append(
            {
                "layer": layer.name,
                "channels_in": channels_in,
                "channels_out": channels_out,
                "dense_channels_in": dense_in,
                "dense_channels_out": dense_out,
                "macs": layer.macs(keep_counts),
                "dense_macs": layer.macs({}),
                "params": _size(*owned, keep_counts) if owned else 0,
                "dense_params": _size(*owned, {}) if owned else 0,
            }
        )
    return rows
