"""Convolution with a gradient that stays fast inside compiled loops on a CPU.

On CPUs XLA runs a convolution at full speed only when its operands come in the order NHWC, HWIO.
The gradients JAX derives come in other orders; outside a loop XLA reorders them, inside `lax.scan`
or `lax.fori_loop` it does not, and they run some twenty times slower (jax issue 12868). Training
epochs and attacks are loops, so here the gradients are written in that order from the start. The
weight gradient becomes a matrix product, for which CPUs have better kernels than for a convolution
with an image-sized window. Elsewhere (GPU, TPU) XLA's own gradients are used.

A convolution and its two gradients are the three derivatives of one function that is linear in
images, kernel and gradient, <gradient, images * kernel>. So each one's derivatives are the other
two, and gradients of gradients, which a loss on input gradients takes, are in that order as well.

XLA also has two kernels for convolutions there, and takes the slower one where channels are few;
`_unstrided` gets round that.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

Pair = tuple[int, int]

_ORDER = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """How a kernel moves over an image; each pair is of rows and of columns.

    Attributes:
        strides: steps between output positions.
        low: zeros before the first pixel.
        high: zeros after the last.
    """

    strides: Pair
    low: Pair
    high: Pair

    def outputs(self, image: tuple[int, ...], kernel: tuple[int, ...]) -> Pair:
        """Output height and width."""
        rows, columns = (
            (n + lo + hi - k) // s + 1 for n, k, s, lo, hi in zip(image, kernel, *self, strict=True)
        )
        return rows, columns


def convolution(images: jax.Array, kernel: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """`conv_general_dilated` on arrays of any layout.

    Args:
        images: with a batch axis, a channel axis and others.
        kernel: likewise, of the same dtype.
        params: of the primitive.
    """
    window = _window(images, kernel, params)
    if window is None or jax.default_backend() != "cpu":
        return primitives.conv_general_dilated_p.bind(images, kernel, **params)
    (n, c, *space), (o, i, *taps), (n_out, c_out, *space_out) = params["dimension_numbers"]
    images = images.transpose(n, *space, c)
    kernel = kernel.transpose(*taps, i, o)
    if params["feature_group_count"] == 1:
        outputs = convolve(images, kernel, window)
    else:
        outputs = _depthwise(images, kernel, window)
    where = {n_out: 0, space_out[0]: 1, space_out[1]: 2, c_out: 3}
    return outputs.transpose([where[index] for index in range(4)])


def _window(images: Any, kernel: Any, params: Mapping[str, Any]) -> Window | None:
    """How the kernel moves, where this file knows a faster way."""
    numbers = params["dimension_numbers"]
    if images.ndim != 4 or images.dtype != jnp.float32 or params["batch_group_count"] != 1:
        return None
    if not isinstance(images.shape[numbers.lhs_spec[0]], int):
        return None  # a batch of symbolic size
    if {*params["lhs_dilation"], *params["rhs_dilation"]} != {1}:
        return None
    groups = params["feature_group_count"]
    channels = images.shape[numbers.lhs_spec[1]]
    if groups != 1 and not (groups == channels == kernel.shape[numbers.rhs_spec[0]]):
        return None
    if params["preferred_element_type"] not in (None, jnp.float32):
        return None
    (top, bottom), (left, right) = params["padding"]
    window = Window(tuple(params["window_strides"]), (top, left), (bottom, right))
    taps = [kernel.shape[index] for index in numbers.rhs_spec[2:]]
    image = [images.shape[index] for index in numbers.lhs_spec[2:]]
    inside = all(
        0 <= lo < k and 0 <= hi < k and n + lo + hi >= k
        for k, n, lo, hi in zip(taps, image, window.low, window.high, strict=True)
    )
    return window if inside else None


def convolve(images: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Two-dimensional convolution on a CPU.

    Args:
        images: (N, H, W, C_in), any float dtype.
        kernel: (k, l, C_in, C_out), same dtype.
        window: how the kernel moves.

    Returns:
        (N, H', W', C_out), same dtype.
    """
    if kernel.shape[:2] == (1, 1):
        # A pointwise convolution is a matrix product, and its gradients are too.
        down, right = window.strides
        return images[:, ::down, ::right] @ kernel[0, 0]
    return _convolve(images, kernel, window)


def _depthwise(images: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Each channel with a kernel of its own, tap by tap: XLA fuses that, and its gradients.

    Args:
        images: (N, H, W, C).
        kernel: (k, l, 1, C).
        window: how the kernel moves.
    """
    rows, columns = window.outputs(images.shape[1:3], kernel.shape[:2])
    down, right = window.strides
    padded = _padded(images, window)
    total: Any = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            seen = padded[
                :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right
            ]
            total = total + seen * kernel[i, j, 0]
    return total


def _padded(images: jax.Array, window: Window) -> jax.Array:
    (top, left), (bottom, right) = window.low, window.high
    return jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images, kernel, window):
    if window.strides == (1, 1):
        return _unstrided(images, kernel, window.low, window.high)
    padding = list(zip(window.low, window.high, strict=True))
    return jax.lax.conv_general_dilated(
        images, kernel, window.strides, padding, dimension_numbers=_ORDER
    )


def _forward(images, kernel, window):
    return _convolve(images, kernel, window), (images, kernel)


def _backward(window, saved, gradient):
    images, kernel = saved
    return (
        _image_gradient(gradient, kernel, window, images.shape),
        _kernel_gradient(gradient, images, window, kernel.shape),
    )


WIDE = 32
"""Output channels from which XLA's CPU convolution runs at full speed (JAX 0.10, AVX-512)."""


def _unstrided(images, kernel, low, high):
    """A convolution of stride one, padded by `low` before and `high` after each axis.

    Where output channels are few, 2 or 4 neighbouring pixels of a row are computed as one pixel of
    as many times the channels, from a kernel that much wider, whose margins are zeros. The
    arithmetic grows by a third or a half, and with 16 channels on both sides the time still falls
    to 0.6, with 7 to 0.3.
    """
    taps, (c_in, c_out) = kernel.shape[:2], kernel.shape[2:]
    height, width = Window((1, 1), low, high).outputs(images.shape[1:3], taps)
    if all(
        out - 1 <= lo and n - 1 + lo < k
        for out, n, k, lo in zip((height, width), images.shape[1:3], taps, low, strict=True)
    ):
        return _whole(images, kernel, low, (height, width))
    # The least arithmetic, where channels fewer than WIDE count as so many.
    together = min(
        (w for w in (1, 2, 4) if width % w == 0),
        key=lambda w: max(w * c_out, WIDE) * (taps[1] + w - 1) / w,
    )
    wide = together * c_out
    # The kernels are several times slower on odd channel counts, and a little on some others.
    spare_in = -c_in % (2 if wide <= WIDE else 4)
    spare_out = WIDE - wide if WIDE - 4 <= wide < WIDE else -wide % 4
    # The kernel as each of the pixels computed together sees it.
    margins = ((0, spare_in), (0, 0))
    seen = [jnp.pad(kernel, ((0, 0), (b, together - 1 - b), *margins)) for b in range(together)]
    wider = jnp.stack(seen, -2).reshape(taps[0], -1, c_in + spare_in, wide)
    outputs = jax.lax.conv_general_dilated(
        jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, spare_in))) if spare_in else images,
        jnp.pad(wider, ((0, 0), (0, 0), (0, 0), (0, spare_out))),
        (1, together),
        list(zip(low, high, strict=True)),
        dimension_numbers=_ORDER,
    )
    return outputs[..., :wide].reshape(images.shape[0], height, width, c_out)


def _whole(images, kernel, low, outputs):
    """The same where every output pixel sees every input pixel: one matrix product.

    XLA would exchange the roles of image and kernel there, which made 2 x 2 pixels with 64 channels
    take 83 % of ResNet20's time on 8 x 8 images.
    """
    number, height, width, _ = images.shape
    c_in, c_out = kernel.shape[2:]
    rows, columns = outputs
    seen = [
        kernel[low[0] - i :][:height, low[1] - j :][:, :width]
        for i in range(rows)
        for j in range(columns)
    ]
    matrix = jnp.stack(seen, -2).reshape(height * width * c_in, rows * columns * c_out)
    return (images.reshape(number, -1) @ matrix).reshape(number, rows, columns, c_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _image_gradient(gradient, kernel, window, shape):
    """A stride-one convolution of the gradient with the kernel turned around.

    With stride s, pixel s p + a (a < s) sees only every s-th row of the kernel. So the kernel is
    cut into the s x s sets of rows and columns that belong together, each set makes channels of its
    own, and these are laid out as pixels. Zeros spread between the gradient's pixels instead would
    cost twice the time.
    """
    n, *image, _ = shape
    c_in, c_out = kernel.shape[2:]
    axes = []
    for size, taps, outputs, stride, low in zip(
        image, kernel.shape[:2], gradient.shape[1:3], window.strides, window.low, strict=True
    ):
        before, after = (taps - 1 - low) // stride, (low + stride - 1) // stride
        span = before + 1 + after
        margin = stride * after - low
        blocks = max(-(-size // stride), outputs)
        axes.append(
            (before, after, span, (margin, stride * span - margin - taps), blocks - outputs)
        )
    (before_i, after_i, span_i, margin_i, more_i), (before_j, after_j, span_j, margin_j, more_j) = (
        axes
    )
    down, right = window.strides
    sets = jnp.pad(kernel, (margin_i, margin_j, (0, 0), (0, 0)))
    sets = sets.reshape(span_i, down, span_j, right, c_in, c_out)[::-1, :, ::-1]
    sets = sets.transpose(0, 2, 5, 1, 3, 4).reshape(span_i, span_j, c_out, down * right * c_in)
    if more_i or more_j:
        gradient = jnp.pad(gradient, ((0, 0), (0, more_i), (0, more_j), (0, 0)))
    rows, columns = gradient.shape[1:3]
    pixels = _unstrided(gradient, sets, (before_i, before_j), (after_i, after_j))
    pixels = pixels.reshape(n, rows, columns, down, right, c_in).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, rows * down, columns * right, c_in)[:, : image[0], : image[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(gradient, images, window, shape):
    """Products of shifted images and shifted gradients, summed over positions and images.

    With one shift on each side (columns on the images, rows on the gradient) a k x k kernel needs
    one product of k C_in by k C_out instead of k^2 small ones. (Height put first, so that shifted
    rows need no copy, is as fast on one core by itself and makes a step on two take 1.8 times as
    long: transposing the images is what costs.)
    """
    taps_i, taps_j, c_in, c_out = shape
    down, right = window.strides
    height, width = gradient.shape[1:3]
    padded = _padded(images, window)
    columns = jnp.concatenate(
        [padded[:, :, j : j + right * (width - 1) + 1 : right] for j in range(taps_j)], axis=-1
    )
    if window.strides != (1, 1):
        taps = [
            _product(columns[:, i : i + down * (height - 1) + 1 : down], gradient)
            for i in range(taps_i)
        ]
        return jnp.stack(taps).reshape(shape)
    spread = jnp.pad(gradient, ((0, 0), (taps_i - 1, taps_i - 1), (0, 0), (0, 0)))
    rows = jnp.concatenate(
        [spread[:, taps_i - 1 - i : 2 * taps_i - 2 - i + height] for i in range(taps_i)], axis=-1
    )
    product = _product(columns, rows)
    return product.reshape(taps_j, c_in, taps_i, c_out).transpose(2, 0, 1, 3)


def _product(left, right):
    """(..., I) and (..., O) -> (I, O), summed over all other axes.

    Flattened first: one product per image, then summed, takes XLA up to ten times longer on a CPU.
    """
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


_convolve.defvjp(_forward, _backward)


def _image_gradient_forward(gradient, kernel, window, shape):
    return _image_gradient(gradient, kernel, window, shape), (gradient, kernel)


def _image_gradient_backward(window, shape, saved, images):
    gradient, kernel = saved
    return (
        _convolve(images, kernel, window),
        _kernel_gradient(gradient, images, window, kernel.shape),
    )


_image_gradient.defvjp(_image_gradient_forward, _image_gradient_backward)


def _kernel_gradient_forward(gradient, images, window, shape):
    return _kernel_gradient(gradient, images, window, shape), (gradient, images)


def _kernel_gradient_backward(window, shape, saved, kernel):
    gradient, images = saved
    return (
        _convolve(images, kernel, window),
        _image_gradient(gradient, kernel, window, images.shape),
    )


_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
