"""The cost of a network as a function of the units it keeps: exact for integers, smooth for floats.

A convolution costs window x positions x channels_in x channels_out multiply-accumulates (MACs) per
image. The channel counts are those of the groups that it reads and writes. A matrix product is
counted in the same way. FLOPs are twice the MACs. Norms and biases count as parameters. Their
arithmetic is not counted, as is usual, since it can be folded into the convolution before them.
Latency comes from a table of measurements that is attached to the graph.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from irp_jax.graph import ChannelGraph, Extent

Kind = Literal["macs", "params", "latency"]
"""What a budget may count. Latency needs a graph with a table: see `pruning.latency_table`."""

UNITS: dict[Kind, str] = {"macs": "macs", "params": "params", "latency": "ns"}
"""Kind -> what its whole numbers count, for messages."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs per image, number of trained parameters (mask logits excluded), and latency.

    Latency is in nanoseconds for an image; None if the graph has no table of latencies.
    """

    macs: Any
    params: Any
    latency: Any = None

    def of(self, kind: Kind) -> Any:
        """Returns the cost that a budget of this kind limits."""
        return {"macs": self.macs, "params": self.params, "latency": self.latency}[kind]


def total(graph: ChannelGraph, keep_counts: Mapping[str, Any] | None = None) -> Cost:
    """Returns the cost of a network.

    Args:
        graph: the graph of the dense network.
        keep_counts: group -> channels kept, or name of a kernel -> weights kept; integers or
            scalars of any array library. Missing groups and kernels are kept whole.

    Returns:
        Exact whole numbers if `keep_counts` holds Python integers.
    """
    keep_counts = keep_counts or {}
    return Cost(
        macs=sum(layer.macs(keep_counts) for layer in graph.layers),
        params=sum(_size(name, extents, keep_counts) for name, extents in graph.params.items()),
        latency=graph.latency(keep_counts) if graph.latency else None,
    )


def _size(name: str, extents: tuple[Extent, ...], keep_counts: Mapping[str, Any]) -> Any:
    return (
        keep_counts[name]
        if name in keep_counts
        else math.prod(extent.count(keep_counts) for extent in extents)
    )


def ratio(graph: ChannelGraph, kind: Kind, keep_counts: Mapping[str, Any]) -> Any:
    """Returns the cost as a fraction of the dense network's, differentiable in `keep_counts`.

    Every layer's cost is divided by the dense total before summing, so float32 is precise enough.
    """
    # A float, since JAX converts integers to int32, which is too small for a large network's MACs.
    dense = float(total(graph).of(kind))
    if kind == "latency":
        assert graph.latency is not None, "a table of latencies must be attached"
        return graph.latency(keep_counts) / dense
    if kind == "macs":
        return sum(layer.macs(keep_counts) / dense for layer in graph.layers)
    return sum(_size(name, extents, keep_counts) / dense for name, extents in graph.params.items())


def table(
    graph: ChannelGraph, keep_counts: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Returns a row per layer: name, and kept and dense channels, MACs and kernel parameters."""
    keep_counts = keep_counts or {}
    rows, seen = [], set()
    for layer in graph.layers:
        channels_in, channels_out = layer.channels(keep_counts)
        dense_in, dense_out = layer.channels({})
        # A kernel that several layers share counts for the first of them.
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


def report(graph: ChannelGraph, keep_counts: Mapping[str, int]) -> dict[str, Any]:
    """Returns the `cost` entry of results.json; with latencies if the graph has a table of them."""
    left, whole = total(graph, keep_counts), total(graph)
    latency = (
        {
            "latency": left.latency,
            "dense_latency": whole.latency,
            "latency_ratio": left.latency / whole.latency,
        }
        if graph.latency
        else {}
    )
    return {
        **latency,
        "macs": left.macs,
        "dense_macs": whole.macs,
        "macs_ratio": left.macs / whole.macs,
        "params": left.params,
        "dense_params": whole.params,
        "params_ratio": left.params / whole.params,
    }
