"""Latency as a cost: a table of measured layers, and their sum as a function of the keep counts.

A layer's latency depends on how many channels it reads and writes. The table has it at some counts
of each. Between them it is interpolated bilinearly. The network's latency is

    overhead + scale * sum of its layers + per_value * values that its layers write,

where the three constants were fitted to whole networks that were measured. The last term stands for
what is between the layers, such as sums of two branches and changes of the memory layout.

Where a runtime is faster with channel counts that are multiples of 4 or 8, exported files are
filled with zero channels up to them. The sum counts those channels, so up to the next multiple a
further channel costs nothing.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.graph import ChannelGraph

RUNTIMES = ("onnxruntime", "litert", "jax")
"""What can be measured."""

MULTIPLE = 4
"""Exported files have zero channels up to multiples of this, unless told otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerLatency:
    """Latencies of a layer, for some numbers of channels.

    Attributes:
        layers: names of the layers of this size, see `Layer.name`.
        channels_in: numbers of input channels (I,), ascending; the last is of the dense network.
        channels_out: numbers of output channels (O,), ascending.
        nanoseconds: (I, O) float64 for an image, which does not decrease along either axis.
    """

    layers: tuple[str, ...]
    channels_in: tuple[int, ...]
    channels_out: tuple[int, ...]
    nanoseconds: np.ndarray

    def at(self, channels_in: Any, channels_out: Any) -> Any:
        """Returns the interpolated nanoseconds; counts outside of the table are moved to its edge.

        Args:
            channels_in: number of input channels, a number or a scalar of any array library.
            channels_out: number of output channels.
        """
        xp = jnp if isinstance(channels_in + channels_out, jax.Array) else np
        i, right = _place(self.channels_in, channels_in, xp)
        o, below = _place(self.channels_out, channels_out, xp)
        table = xp.asarray(self.nanoseconds if xp is np else np.float32(self.nanoseconds))
        last_i, last_o = (size - 1 for size in self.nanoseconds.shape)
        i_next, o_next = xp.minimum(i + 1, last_i), xp.minimum(o + 1, last_o)
        low = (1 - below) * table[i, o] + below * table[i, o_next]
        high = (1 - below) * table[i_next, o] + below * table[i_next, o_next]
        return (1 - right) * low + right * high

    @functools.cached_property
    def fit(self) -> np.ndarray:
        """Coefficients (4,) of 1, in, out and in * out, none negative, nearest to the table.

        The product's is positive, so that each channel has a marginal cost.
        """
        from scipy.optimize import nnls

        i, o = (
            np.ravel(a) for a in np.meshgrid(self.channels_in, self.channels_out, indexing="ij")
        )
        values = np.maximum(self.nanoseconds.ravel(), 1.0)
        terms = np.stack([np.ones(i.shape), i, o, i * o], 1)
        found, _ = nnls(terms / values[:, None], np.ones(len(values)))
        least = 1e-3 * values[-1] / (i[-1] * o[-1])
        return np.maximum(found, [0.0, 0.0, 0.0, least])

    def smooth(self, channels_in: Any, channels_out: Any) -> Any:
        """Returns the fit's nanoseconds, differentiable in both counts."""
        one, i, o, both = map(float, self.fit)
        return one + i * channels_in + o * channels_out + both * channels_in * channels_out


def _place(knots: tuple[int, ...], count: Any, xp: Any) -> tuple[Any, Any]:
    """Returns the index of the knot at or before a count, and how far it is to the next, 0 to 1."""
    if len(knots) == 1:
        return 0, 0.0
    points = xp.asarray(knots, np.float32)
    index = xp.clip(xp.searchsorted(points, count, side="right") - 1, 0, len(knots) - 2)
    return index, xp.clip((count - points[index]) / (points[index + 1] - points[index]), 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatencyTable:
    """Measured latencies of a network's layers, and what they were measured with.

    Attributes:
        model: name of the network.
        image_shape: (H, W, C) of an image.
        fingerprint: of the network's graph, see `ChannelGraph.fingerprint`.
        device: name of the processor or accelerator.
        runtime: one of `RUNTIMES`.
        runtime_version: its version.
        threads: number of threads of the runtime.
        irp_jax_version: the version that measured.
        multiple: exported files have zero channels up to multiples of this.
        overhead: nanoseconds of a whole network that do not depend on its channels. It may be
            negative, since a layer alone takes longer to start than a layer in a network.
        scale: factor of the layers' sum in a whole network.
        per_value: nanoseconds for each output value of a layer.
        layers: one entry for all layers of one size.
        checks: a row for each whole network that was measured: "network", "fitted" (whether the
            constants were fitted to it), "predicted" and "measured" in nanoseconds.
    """

    model: str
    image_shape: tuple[int, int, int]
    fingerprint: str
    device: str
    runtime: str
    runtime_version: str
    threads: int
    irp_jax_version: str
    multiple: int
    overhead: float
    scale: float
    per_value: float
    layers: tuple[LayerLatency, ...]
    checks: tuple[Mapping[str, Any], ...] = ()

    def attached(self, graph: ChannelGraph) -> ChannelGraph:
        """Returns the graph with this table as its `latency`.

        Args:
            graph: of the dense network that was measured.

        Raises:
            ValueError: the table lacks a layer, has one more or one of another size, or its dense
                latency is not positive.
        """
        sizes = {layer.name: layer.channels({}) for layer in graph.layers if layer.kind != "matmul"}
        here = {
            name: (entry.channels_in[-1], entry.channels_out[-1])
            for entry in self.layers
            for name in entry.layers
        }
        if here != sizes:
            odd = sorted(name for name in {*here, *sizes} if here.get(name) != sizes.get(name))
            raise ValueError(f"it has other layers than the network: {', '.join(odd[:3])}")
        if not self.total(graph, {}) > 0:
            raise ValueError("its latency of the dense network is not positive")
        return dataclasses.replace(graph, latency=functools.partial(self.total, graph))

    def total(self, graph: ChannelGraph, keep_counts: Mapping[str, Any]) -> Any:
        """Returns nanoseconds for an image.

        Args:
            graph: of the dense network that was measured.
            keep_counts: channel group -> channels kept; all of them for a group that is missing.

        Python integers give a whole number. Scalars of JAX give the same value as a float, with the
        gradient of the smooth fits: between two multiples the value itself is constant.
        """
        known = {name: entry for entry in self.layers for name in entry.layers}
        parts = [(layer, known[layer.name]) for layer in graph.layers if layer.name in known]
        padded = {
            group: rounded_up(count, self.multiple, graph.groups[group])
            for group, count in keep_counts.items()
        }

        def summed(counts: Mapping[str, Any], smooth: bool) -> Any:
            nanoseconds: Any = self.overhead
            for layer, entry in parts:
                channels = layer.channels(counts)
                alone = entry.smooth(*channels) if smooth else entry.at(*channels)
                nanoseconds += self.scale * alone + self.per_value * layer.uses * channels[1]
            return nanoseconds

        exact = summed(padded, smooth=False)
        if not any(isinstance(count, jax.Array) for count in keep_counts.values()):
            return round(float(exact))
        smooth = summed(keep_counts, smooth=True)
        return smooth + jax.lax.stop_gradient(exact - smooth)

    def to_json(self) -> dict[str, Any]:
        """Returns the table as JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        layers = [
            {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
            | {"nanoseconds": entry.nanoseconds.round(1).tolist()}
            for entry in self.layers
        ]
        return json.loads(json.dumps({**fields, "layers": layers}))


def rounded_up(count: Any, multiple: int, size: int) -> Any:
    """Returns a number of channels with the zero channels that an exported file has besides.

    Args:
        count: channels kept.
        multiple: that files are filled up to.
        size: channels of the dense network, which are never exceeded.
    """
    if isinstance(count, jax.Array):  # a rounding error must not add a whole step
        return jnp.minimum(jnp.ceil(count / multiple - 1e-3) * multiple, float(size))
    return min(-(-int(count) // multiple) * multiple, size)


def from_json(found: Any) -> LatencyTable:
    """Reads what `LatencyTable.to_json` returned.

    Raises:
        ValueError: it is something else.
    """
    names = {field.name for field in dataclasses.fields(LatencyTable)}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError("its keys are not those of a table")
    texts = ("model", "fingerprint", "device", "runtime", "runtime_version", "irp_jax_version")
    if not all(isinstance(found[name], str) for name in texts):
        raise ValueError("a name in it is no text")
    if found["runtime"] not in RUNTIMES:
        raise ValueError(f"it is of the unknown runtime {found['runtime']!r}")
    try:
        layers = tuple(
            LayerLatency(
                layers=tuple(entry["layers"]),
                channels_in=tuple(map(int, entry["channels_in"])),
                channels_out=tuple(map(int, entry["channels_out"])),
                nanoseconds=np.asarray(entry["nanoseconds"], np.float64),
            )
            for entry in found["layers"]
        )
        height, width, channels = map(int, found["image_shape"])
        table = LatencyTable(
            **{**found, "layers": layers, "image_shape": (height, width, channels),
               "multiple": int(found["multiple"]), "threads": int(found["threads"]),
               "overhead": float(found["overhead"]),
               "scale": float(found["scale"]), "per_value": float(found["per_value"]),
               "checks": tuple(found["checks"])}
        )  # fmt: skip
        list(map(dict, table.checks))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("an entry is missing or of another type") from error
    for entry in layers:
        sound = (
            entry.nanoseconds.shape == (len(entry.channels_in), len(entry.channels_out))
            and entry.nanoseconds.size > 0
            and np.isfinite(entry.nanoseconds).all()
            and (entry.nanoseconds >= 0).all()
            and min(*entry.channels_in, *entry.channels_out) >= 1
            and all((np.diff(entry.nanoseconds, axis=axis) >= 0).all() for axis in (0, 1))
            and all((np.diff(knots) > 0).all() for knots in (entry.channels_in, entry.channels_out))
        )
        if not sound:
            raise ValueError(f"the latencies of {', '.join(map(str, entry.layers))} are damaged")
    constants = (table.overhead, table.scale, table.per_value)
    if not layers or table.multiple < 1 or not np.isfinite(constants).all():
        raise ValueError("its constants are damaged")
    if not table.scale > 0 or not table.per_value >= 0:
        raise ValueError("its constants are damaged")
    return table


def rising(times: np.ndarray) -> np.ndarray:
    """Returns the nearest times that do not decrease along either axis, by the mean of two bounds.

    The bounds are the running maximum from the smallest counts and the running minimum from the
    largest. More channels never take less time, since zero channels can be added.

    Args:
        times: (I, O) measured times.
    """
    above, below = times, times
    for axis in (0, 1):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2
