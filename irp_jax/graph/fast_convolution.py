"""Convolution whose gradient stays fast inside compiled loops on a CPU.

On CPUs XLA runs a convolution at full speed only if its operands have the layouts NHWC and HWIO.
The gradients that JAX derives have other layouts. Outside a loop XLA reorders them. Inside
`lax.scan` or `lax.fori_loop` it does not, and they run about twenty times slower (jax issue 12868).
Training epochs and attacks are loops, so this file computes the gradients in those layouts. The
weight gradient is a matrix product, since CPUs have faster kernels for it than for a convolution
with a window as large as the image. On GPUs and TPUs XLA's own gradients are used.

A convolution and its two gradients are the three derivatives of one function that is linear in
images, kernel and gradient: <gradient, images * kernel>. So the derivatives of each are the other
two. Gradients of gradients, which a loss on input gradients needs, thus have these layouts as well.

On CPUs XLA has two kernels for convolutions, and uses the slower one if channels are few.
`_unstrided` avoids that.
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
    """How a kernel moves over an image. Each attribute is a pair: for rows and for columns.

    Attributes:
        strides: steps between output positions.
        low: zeros before the first pixel.
        high: zeros after the last pixel.
    """

    strides: Pair
    low: Pair
    high: Pair

    def outputs(self, image: tuple[int, ...], kernel: tuple[int, ...]) -> Pair:
        """Returns the height and width of the output."""
        rows, columns = (
            (n + lo + hi - k) // s + 1 for n, k, s, lo, hi in zip(image, kernel, *self, strict=True)
        )
        return rows, columns


def convolution(images: jax.Array, kernel: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """Computes `conv_general_dilated` on arrays of any layout.

    Args:
        images: an array with a batch axis, a channel axis and spatial axes.
        kernel: an array with two channel axes and spatial axes, of the same dtype.
        params: the parameters of the primitive.
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
    """Returns how the kernel moves; None if this file has no faster method."""
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
    """Computes a two-dimensional convolution on a CPU.

    Args:
        images: (N, H, W, C_in), any float dtype.
        kernel: (k, l, C_in, C_out), same dtype.
        window: how the kernel moves.

    Returns:
        (N, H', W', C_out), same dtype.
    """
    if kernel.shape[:2] == (1, 1):
        # A pointwise convolution and its gradients are matrix products.
        down, right = window.strides
        return images[:, ::down, ::right] @ kernel[0, 0]
    return _convolve(images, kernel, window)


def _depthwise(images: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves each channel with its own kernel, tap by tap: XLA fuses this and its gradients.

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
"""Output channels that XLA's CPU convolution needs for full speed (JAX 0.10, AVX-512)."""


def _unstrided(images, kernel, low, high):
    """Computes a convolution of stride one, padded by `low` before and `high` after each axis.

    If output channels are few, 2 or 4 neighbouring pixels of a row are computed as one pixel with 2
    or 4 times the channels. Their kernel is 1 or 3 columns wider, and its margins are zeros. For a
    kernel of three columns the arithmetic grows by a third or doubles. The time still falls to 0.6
    with 16 channels on both sides, and to 0.3 with 7.
    """
    taps, (c_in, c_out) = kernel.shape[:2], kernel.shape[2:]
    height, width = Window((1, 1), low, high).outputs(images.shape[1:3], taps)
    if all(
        out - 1 <= lo and n - 1 + lo < k
        for out, n, k, lo in zip((height, width), images.shape[1:3], taps, low, strict=True)
    ):
        return _whole(images, kernel, low, (height, width))
    # The least arithmetic, where fewer than WIDE channels count as WIDE.
    together = min(
        (w for w in (1, 2, 4) if width % w == 0),
        key=lambda w: max(w * c_out, WIDE) * (taps[1] + w - 1) / w,
    )
    wide = together * c_out
    # XLA is several times slower on odd channel counts, and slightly slower on some others.
    spare_in = -c_in % (2 if wide <= WIDE else 4)
    spare_out = WIDE - wide if WIDE - 4 <= wide < WIDE else -wide % 4
    # One shifted kernel for each of the pixels that are computed together.
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
    """Computes a stride-one convolution whose outputs all depend on all inputs: a matrix product.

    In this case XLA would exchange the roles of image and kernel. The layers with 2 x 2 pixels and
    64 channels then took 83 % of ResNet20's time on 8 x 8 images.
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
    """Computes the gradient of the images: a stride-one convolution with the flipped kernel.

    With stride s, pixel s p + a (a < s) depends on every s-th row of the kernel only. So the kernel
    is divided into s x s sets of rows and columns. Each set computes its own channels, which are
    then rearranged as pixels. Inserting zeros between the gradient's pixels instead would take
    twice the time.
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
    """Computes the gradient of the kernel: products of images and gradients, summed over positions.

    Columns are shifted on the images, and rows on the gradient. A k x k kernel then needs one
    product of k C_in by k C_out instead of k^2 small ones. A layout with height first would need no
    copies of shifted rows. It is as fast on one core, but a training step on two cores takes 1.8
    times as long, because it must transpose the images.
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
    """Multiplies (..., I) and (..., O) to (I, O), summed over all other axes.

    The arrays are flattened first. On a CPU one product per image, summed afterwards, takes XLA up
    to ten times longer.
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
