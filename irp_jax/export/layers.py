"""Single layers, and whole networks of any width, as functions that a runtime can time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.export import artifact, litert_converter, onnx, tflite
from irp_jax.graph import Layer, Window
from irp_jax.pruning.latency_table import rounded_up
from irp_jax.traced import TracedModel

ORDER = ("NHWC", "HWIO", "NHWC")

AT_ONCE = 64
"""Number of functions that a process of the LiteRT converter converts."""


class TimedFunction(NamedTuple):
    """A function to time.

    Attributes:
        apply: (arrays, images (N, H, W, C) float32) -> logits (N, K) or images (N, H, W, C).
        arrays: its weights, a pytree.
        image_shape: (H, W, C) of an image.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    arrays: Any
    image_shape: tuple[int, int, int]


def nothing() -> TimedFunction:
    """Returns a function that does almost nothing. Its time is the overhead of a call."""
    return TimedFunction(lambda arrays, images: jnp.maximum(images, 0), (), (1, 1, 4))


def single(layer: Layer, channels_in: int, channels_out: int) -> TimedFunction:
    """Returns a layer with a bias, and with ReLU unless it gives the logits.

    A norm after the layer is part of its kernel and bias in an exported file.

    Args:
        layer: a convolution over one or two axes, or a matrix product with a kernel.
        channels_in: number of channels that its kernel reads.
        channels_out: number of channels that it writes.
    """
    act = (lambda x: x) if layer.final else (lambda x: jnp.maximum(x, 0))
    if layer.window is None:
        kernel, bias = _drawn((channels_in, channels_out)), _drawn((channels_out,))

        def product(arrays: Any, images: jax.Array) -> jax.Array:
            flat = images.reshape(-1, channels_in) @ arrays[0] + arrays[1]
            return act(flat.reshape(*images.shape[:3], channels_out))

        return TimedFunction(product, (kernel, bias), (layer.uses, 1, channels_in))
    window = _flat(layer.window)
    _, dense_out = layer.channels({})
    # A group of a grouped convolution is pruned as a whole.
    each = max(1, dense_out // window.groups)
    groups = 1 if window.groups == 1 else max(1, channels_out // each)
    channels_out = channels_out if window.groups == 1 else groups * each
    arrays = _drawn((*window.kernel, channels_in, channels_out)), _drawn((channels_out,))

    def convolution(arrays: Any, images: jax.Array) -> jax.Array:
        out = jax.lax.conv_general_dilated(
            images, arrays[0], window.strides, window.padding,
            lhs_dilation=window.input_dilation, rhs_dilation=window.kernel_dilation,
            feature_group_count=groups, dimension_numbers=ORDER,
        )  # fmt: skip
        return act(out + arrays[1])

    height, width = window.positions
    return TimedFunction(convolution, arrays, (height, width, groups * channels_in))


def _flat(window: Window) -> Window:
    """Returns a window over two axes."""
    if len(window.positions) == 2:
        return window
    one = (1,)
    return Window(
        window.positions + one, window.kernel + one, window.strides + one,
        (*window.padding, (0, 0)), window.input_dilation + one, window.kernel_dilation + one,
        window.groups,
    )  # fmt: skip


def whole(model: TracedModel, keep_counts: Mapping[str, int], multiple: int) -> TimedFunction:
    """Returns a whole network with random weights, as an exported file has it.

    Args:
        model: the dense network.
        keep_counts: channel group -> channels kept.
        multiple: zero channels are added up to multiples of this.
    """
    graph = model.graph
    wide = {
        group: rounded_up(count, multiple, graph.groups[group])
        for group, count in keep_counts.items()
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, state = (
        {
            name: _drawn([extent.count(wide) for extent in graph.arrays[name]], leaf.dtype)
            for name, leaf in arrays.items()
        }
        for arrays in shapes
    )

    def apply(arrays: Any, images: jax.Array) -> jax.Array:
        return model.network(arrays[0], arrays[1], images, train=False)[0]

    return TimedFunction(apply, (params, state), graph.image_shape)


def _drawn(shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """Returns random weights that neither grow nor shrink the size of what they multiply."""
    if len(shape) < 2:
        return np.ones(tuple(shape), dtype)
    scale = np.prod(shape[:-1]) ** -0.5
    return (scale * np.random.default_rng(0).normal(size=shape)).astype(dtype)


# ---- runtimes ------------------------------------------------------------------------------------


def in_onnxruntime(subject: TimedFunction, threads: int) -> Callable[[], object]:
    """Returns a call of onnxruntime on one image, in a file as `Network.export` writes it."""
    layout = "NHWC"
    image = jax.ShapeDtypeStruct((1, *subject.image_shape), jnp.float32)
    shape = jax.eval_shape(subject.apply, subject.arrays, image)
    if len(shape.shape) == 4:  # between layers, runtimes have channels first
        layout = "NCHW"

    def function(images: jax.Array) -> jax.Array:
        out = subject.apply(subject.arrays, images)
        return out if out.ndim == 2 else out.transpose(0, 3, 1, 2).reshape(out.shape[0], -1)

    content = onnx.serialized(function, subject.image_shape, layout=layout)
    file = artifact.from_bytes(content, "onnx", {"input_layout": layout}, threads=threads)
    images = file.in_layout(np.full((1, *subject.image_shape), 0.5, np.float32))
    return functools.partial(file.run, images)


def in_litert(subjects: Sequence[TimedFunction], threads: int) -> list[Callable[[], object]]:
    """Returns calls of LiteRT on one image, in files as `Network.export` writes them.

    The converter takes long to start, so it converts all functions in one process.
    """
    requests = [
        tflite.request(functools.partial(subject.apply, subject.arrays), subject.image_shape)
        for subject in subjects
    ]
    calls: list[Callable[[], object]] = []
    for subject, content in zip(subjects, litert_converter.convert(requests), strict=True):
        file = artifact.from_bytes(content, "tflite", threads=threads)
        images = np.full((1, *subject.image_shape), 0.5, np.float32)
        calls.append(functools.partial(file.run, images))
    return calls


def in_jax(subject: TimedFunction, threads: int) -> Callable[[], object]:
    """Returns a call of JAX on one image, on its default device."""
    arrays = jax.device_put(subject.arrays)
    images = jnp.full((1, *subject.image_shape), 0.5, jnp.float32)
    run = jax.jit(subject.apply).lower(arrays, images).compile()
    return lambda: jax.block_until_ready(run(arrays, images))


def compiled(
    subjects: Mapping[Any, TimedFunction],
    runtime: str,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[Any, Callable[[], object]]:
    """Returns calls that compute one image.

    Args:
        subjects: key -> what is timed.
        runtime: one of `latency_table.RUNTIMES`.
        threads: number of threads, for onnxruntime and LiteRT.
        progress: called with the number of functions that are compiled and with their number.

    Raises:
        UserError: a function cannot be exported.
    """
    found: dict[Any, Callable[[], object]] = {}
    rest = list(subjects)
    while rest:
        progress(len(found), len(subjects))
        count = AT_ONCE if runtime == "litert" else 1
        keys, rest = rest[:count], rest[count:]
        some = [subjects[key] for key in keys]
        if runtime == "litert":
            found |= zip(keys, in_litert(some, threads), strict=True)
        else:
            one = in_onnxruntime if runtime == "onnxruntime" else in_jax
            found[keys[0]] = one(some[0], threads)
    return found
