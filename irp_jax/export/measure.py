"""Measures a table of latencies: the layers of a network one by one, and a few whole networks."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from irp_jax import __version__, machine
from irp_jax.errors import UserError, unknown
from irp_jax.export import layers, onnx, tflite
from irp_jax.export.timing import in_turns
from irp_jax.graph import ChannelGraph, Layer
from irp_jax.latency import device_of, version_of
from irp_jax.pruning.latency_table import (
    MULTIPLE,
    RUNTIMES,
    LatencyTable,
    LayerLatency,
    rising,
    rounded_up,
)
from irp_jax.traced import TracedModel

STEPS = 8
"""Number of channel counts at which a layer is measured, besides the smallest one."""

UNEVEN = 12
"""Number of whole networks to which the constants are fitted. Each group keeps another share."""

HELD_OUT = 4
"""Number of further such networks, which show the error of the table."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a part, steps done and number of steps."""


def measure(
    model: TracedModel,
    runtime: str = "onnxruntime",
    *,
    threads: int | None = None,
    multiple: int | None = None,
    rounds: int = 100,
    progress: Progress = lambda title, done, total: None,
) -> LatencyTable:
    """Measures the latency of a network's layers on this machine.

    Args:
        model: the dense network.
        runtime: "onnxruntime" or "litert" on the processor, or "jax" on its default device.
        threads: number of threads of onnxruntime or LiteRT, 1 if None. JAX uses its own.
        multiple: files of onnxruntime have zero channels up to multiples of this, as
            `Network.export` writes them, 4 if None. The others run a network as it is.
        rounds: number of times that each layer and network is timed, in turns.
        progress: called with the name of a part, steps done and number of steps.

    Returns:
        The table. All times are medians, of one image.

    Raises:
        UserError: the runtime is unknown or not installed, a number is below 1, or a layer cannot
            be exported.
    """
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    for name, value in (("threads", threads), ("multiple", multiple), ("rounds", rounds)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if runtime == "onnxruntime":
        onnx.check_installed()
    elif multiple is not None:
        raise UserError(f"--multiple is for onnxruntime: leave it out for {runtime}")
    if runtime == "litert":
        tflite.check_installed()
    if runtime == "jax" and threads is not None:
        raise UserError("--threads is for onnxruntime and litert: leave it out for jax")
    threads = machine.cores() if runtime == "jax" else threads or 1
    multiple = (multiple or MULTIPLE) if runtime == "onnxruntime" else 1
    graph = model.graph
    sizes, kept = _sizes(graph), _networks(graph)
    grids, subjects = _subjects(graph, sizes, multiple)
    subjects |= {name: layers.whole(model, counts, multiple) for name, counts in kept.items()}
    runs = layers.compiled(subjects, runtime, threads, functools.partial(progress, "compiling"))
    taken = in_turns(runs, rounds, functools.partial(progress, "measuring"))
    times = {key: 1e9 * float(np.median(each)) for key, each in taken.items()}

    def alone(size: Any) -> np.ndarray:
        """Returns the nanoseconds of a layer at each pair of numbers of channels."""
        inputs, outputs = grids[size]
        return np.array(
            [[max(times[size, i, o] - times[NOTHING], 0.0) for o in outputs] for i in inputs]
        )

    found = tuple(
        LayerLatency(
            layers=names, channels_in=grids[size][0], channels_out=grids[size][1],
            nanoseconds=rising(alone(size)),
        )
        for size, names in sizes.items()
    )  # fmt: skip
    raw = LatencyTable(
        model=model.spec.get("name", model.name), image_shape=graph.image_shape,
        fingerprint=graph.fingerprint,
        device=device_of(runtime), runtime=runtime, runtime_version=version_of(runtime),
        threads=threads, irp_jax_version=__version__, multiple=multiple, overhead=0.0, scale=1.0,
        per_value=0.0, layers=found,
    )  # fmt: skip
    return _fitted(raw, graph, kept, times)


NOTHING = "nothing"
"""Key of a program without a layer, whose time is subtracted."""


def _subjects(
    graph: ChannelGraph, sizes: Mapping[Any, tuple[str, ...]], multiple: int
) -> tuple[dict[Any, tuple[tuple[int, ...], tuple[int, ...]]], dict[Any, layers.TimedFunction]]:
    """Returns what is timed for single layers.

    Returns:
        size of a layer -> numbers of input and output channels; (size, input, output channels) ->
        function.
    """
    grids = {}
    subjects: dict[Any, layers.TimedFunction] = {NOTHING: layers.nothing()}
    for size, names in sizes.items():
        layer = next(each for each in graph.layers if each.name == names[0])
        inputs, outputs = grids[size] = _knots(layer, multiple)
        for i, o in itertools.product(inputs, outputs):
            subjects[size, i, o] = layers.single(layer, i, o)
    return grids, subjects


def _sizes(graph: ChannelGraph) -> dict[Any, tuple[str, ...]]:
    """Returns a layer's size, which decides its latency -> the names of all layers of that size.

    Products of two activations are left out: pruning does not change their latency.
    """
    found: dict[Any, tuple[str, ...]] = {}
    for layer in graph.layers:
        if layer.kind != "matmul":
            size = (layer.window, layer.uses, layer.final, *layer.channels({}))
            found[size] = (*found.get(size, ()), layer.name)
    return found


def _knots(layer: Layer, multiple: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the numbers of input and output channels at which a layer is measured."""

    def along(size: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        if not any(layer.extents[axis].groups for axis in axes):
            return (size,)
        counts = [rounded_up(math.ceil(size * n / STEPS), multiple, size) for n in range(STEPS + 1)]
        return tuple(sorted({min(multiple, size), *counts} - {0}))

    channels_in, channels_out = layer.channels({})
    return along(channels_in, layer.reads), along(channels_out, layer.writes)


def _networks(graph: ChannelGraph) -> dict[str, dict[str, int]]:
    """Returns name -> keep counts of whole networks: dense, even and uneven."""
    draw = np.random.default_rng(0)

    def kept(shares: Iterable[float]) -> dict[str, int]:
        pairs = zip(graph.groups.items(), shares, strict=False)
        return {name: max(1, round(share * size)) for (name, size), share in pairs}

    found = {"dense": dict(graph.groups)}
    for each in (0.2, 0.4, 0.6, 0.8):
        found[f"{each:.0%} of each group"] = kept(itertools.repeat(each))
    for number in range(UNEVEN + HELD_OUT):
        middle = 0.15 + 0.75 * (number * 5 % (UNEVEN + HELD_OUT)) / (UNEVEN + HELD_OUT)
        factors = np.exp(draw.uniform(-0.7, 0.7, size=len(graph.groups)))
        found[f"uneven {number + 1}"] = kept(np.minimum(1.0, middle * factors))
    return found


def _fitted(
    raw: LatencyTable,
    graph: ChannelGraph,
    kept: Mapping[str, Mapping[str, int]],
    times: Mapping[Any, float],
) -> LatencyTable:
    """Returns the table with the constants that fit whole networks best, in relative terms."""
    from scipy.optimize import lsq_linear

    def latencies(overhead: float, scale: float, per_value: float) -> np.ndarray:
        table = dataclasses.replace(raw, overhead=overhead, scale=scale, per_value=per_value)
        return np.array([float(table.total(graph, counts)) for counts in kept.values()])

    # The latency is linear in the constants.
    terms = np.stack([np.ones(len(kept)), latencies(0, 1, 0), latencies(0, 0, 1)], 1)
    goals = np.array([times[name] for name in kept])
    fitted = np.array([name not in list(kept)[-HELD_OUT:] for name in kept])
    bounds = ([-np.inf, 1e-3, 0.0], np.inf)
    rows = (terms / goals[:, None])[fitted]
    sizes = np.abs(rows).max(0)
    sizes[sizes == 0] = (
        1  # a term that is zero in all networks: a clock may read 0 for small layers
    )
    found = lsq_linear(rows / sizes, np.ones(len(rows)), (np.array(bounds[0]) * sizes, np.inf))
    constants = found.x / sizes
    checks = [
        {"network": name, "fitted": bool(used), "predicted": round(now), "measured": round(goal)}
        for name, used, now, goal in zip(kept, fitted, terms @ constants, goals, strict=True)
    ]
    overhead, scale, per_value = map(float, constants)
    return dataclasses.replace(
        raw, overhead=overhead, scale=scale, per_value=per_value, checks=tuple(checks)
    )
