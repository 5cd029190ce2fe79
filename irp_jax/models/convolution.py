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

import jax
import jax.numpy as jnp

_ORDER = ("NHWC", "HWIO", "NHWC")


def convolve(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Two-dimensional convolution, zero padding of half the kernel on every side.

    Args:
        images: (N, H, W, C_in), any float dtype.
        kernel: (k, k, C_in, C_out), k odd, same dtype.
        stride: step between output positions, in pixels.

    Returns:
        (N, ceil(H / stride), ceil(W / stride), C_out), same dtype.
    """
    if jax.default_backend() == "cpu":
        if kernel.shape[0] == 1:
            # A pointwise convolution is a matrix product, and its gradients are too.
            return images[:, ::stride, ::stride] @ kernel[0, 0]
        return _convolve_on_cpu(images, kernel, stride)
    return _convolve(images, kernel, stride)


def _convolve(images, kernel, stride):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_ORDER
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_on_cpu(images, kernel, stride):
    if stride > 1:
        return _convolve(images, kernel, stride)
    pad = kernel.shape[0] // 2
    return _unstrided(images, kernel, pad, pad)


def _forward(images, kernel, stride):
    return _convolve_on_cpu(images, kernel, stride), (images, kernel)


def _backward(stride, saved, gradient):
    images, kernel = saved
    return (
        _image_gradient(gradient, kernel, stride, images.shape),
        _kernel_gradient(gradient, images, stride, kernel.shape),
    )


WIDE = 32
"""Output channels from which XLA's CPU convolution runs at full speed (JAX 0.10, AVX-512)."""


def _unstrided(images, kernel, before, after):
    """A convolution of stride one that keeps the size, padded by `before` and `after` on each axis.

    Where output channels are few, 2 or 4 neighbouring pixels of a row are computed as one pixel of
    as many times the channels, from a kernel that much wider, whose margins are zeros. The
    arithmetic grows by a third or a half, and with 16 channels on both sides the time still falls
    to 0.6, with 7 to 0.3.
    """
    height, width = images.shape[1:3]
    size, c_in, c_out = kernel.shape[1:]
    if max(height, width) - 1 <= min(before, after):
        return _whole(images, kernel, before)
    # The least arithmetic, where channels fewer than WIDE count as so many.
    together = min(
        (w for w in (1, 2, 4) if width % w == 0),
        key=lambda w: max(w * c_out, WIDE) * (size + w - 1) / w,
    )
    wide = together * c_out
    # The kernels are several times slower on odd channel counts, and a little on some others.
    spare_in = -c_in % (2 if wide <= WIDE else 4)
    spare_out = WIDE - wide if WIDE - 4 <= wide < WIDE else -wide % 4
    # The kernel as each of the pixels computed together sees it.
    margins = ((0, spare_in), (0, 0))
    seen = [jnp.pad(kernel, ((0, 0), (b, together - 1 - b), *margins)) for b in range(together)]
    wider = jnp.stack(seen, -2).reshape(size, -1, c_in + spare_in, wide)
    rows = (before, after)
    outputs = jax.lax.conv_general_dilated(
        jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, spare_in))) if spare_in else images,
        jnp.pad(wider, ((0, 0), (0, 0), (0, 0), (0, spare_out))),
        (1, together),
        (rows, rows),
        dimension_numbers=_ORDER,
    )
    return outputs[..., :wide].reshape(*images.shape[:3], c_out)


def _whole(images, kernel, before):
    """The same where every output pixel sees every input pixel: one matrix product.

    XLA would exchange the roles of image and kernel there, which made 2 x 2 pixels with 64 channels
    take 83 % of ResNet20's time on 8 x 8 images.
    """
    number, height, width, _ = images.shape
    c_in, c_out = kernel.shape[2:]
    seen = [
        kernel[before - i :][:height, before - j :][:, :width]
        for i in range(height)
        for j in range(width)
    ]
    matrix = jnp.stack(seen, -2).reshape(height * width * c_in, height * width * c_out)
    return (images.reshape(number, -1) @ matrix).reshape(number, height, width, c_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _image_gradient(gradient, kernel, stride, shape):
    """A stride-one convolution of the gradient with the kernel turned around.

    With stride s, pixel s p + a (a < s) sees only every s-th row of the kernel. So the kernel is
    cut into the s x s sets of rows and columns that belong together, each set makes channels of its
    own, and these are laid out as pixels. Zeros spread between the gradient's pixels instead would
    cost twice the time.
    """
    n, height, width, _ = shape
    size, _, c_in, c_out = kernel.shape
    rows, columns = gradient.shape[1:3]
    pad = size // 2
    before, after = pad // stride, (pad + stride - 1) // stride
    span = before + 1 + after
    low = stride * after - pad
    margin = (low, stride * span - low - size)
    sets = jnp.pad(kernel, (margin, margin, (0, 0), (0, 0)))
    sets = sets.reshape(span, stride, span, stride, c_in, c_out)[::-1, :, ::-1]
    sets = sets.transpose(0, 2, 5, 1, 3, 4).reshape(span, span, c_out, stride**2 * c_in)
    pixels = _unstrided(gradient, sets, before, after)
    pixels = pixels.reshape(n, rows, columns, stride, stride, c_in).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(n, rows * stride, columns * stride, c_in)[:, :height, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(gradient, images, stride, shape):
    """Products of shifted images and shifted gradients, summed over positions and images.

    With one shift on each side (columns on the images, rows on the gradient) a k x k kernel needs
    one product of k C_in by k C_out instead of k^2 small ones. (Height put first, so that shifted
    rows need no copy, is as fast on one core by itself and makes a step on two take 1.8 times as
    long: transposing the images is what costs.)
    """
    size, _, c_in, c_out = shape
    pad = size // 2
    height, width = gradient.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    columns = jnp.concatenate(
        [padded[:, :, j : j + stride * (width - 1) + 1 : stride] for j in range(size)], axis=-1
    )
    if stride > 1:
        taps = [
            _product(columns[:, i : i + stride * (height - 1) + 1 : stride], gradient)
            for i in range(size)
        ]
        return jnp.stack(taps).reshape(shape)
    spread = jnp.pad(gradient, ((0, 0), (size - 1, size - 1), (0, 0), (0, 0)))
    rows = jnp.concatenate(
        [spread[:, size - 1 - i : 2 * size - 2 - i + height] for i in range(size)], axis=-1
    )
    product = _product(columns, rows)
    return product.reshape(size, c_in, size, c_out).transpose(2, 0, 1, 3)


def _product(left, right):
    """(..., I) and (..., O) -> (I, O), summed over all other axes.

    Flattened first: one product per image, then summed, takes XLA up to ten times longer on a CPU.
    """
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


_convolve_on_cpu.defvjp(_forward, _backward)


def _image_gradient_forward(gradient, kernel, stride, shape):
    return _image_gradient(gradient, kernel, stride, shape), (gradient, kernel)


def _image_gradient_backward(stride, shape, saved, images):
    gradient, kernel = saved
    return (
        _convolve_on_cpu(images, kernel, stride),
        _kernel_gradient(gradient, images, stride, kernel.shape),
    )


_image_gradient.defvjp(_image_gradient_forward, _image_gradient_backward)


def _kernel_gradient_forward(gradient, images, stride, shape):
    return _kernel_gradient(gradient, images, stride, shape), (gradient, images)


def _kernel_gradient_backward(stride, shape, saved, kernel):
    gradient, images = saved
    return (
        _convolve_on_cpu(images, kernel, stride),
        _image_gradient(gradient, kernel, stride, images.shape),
    )


_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
