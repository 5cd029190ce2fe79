"""Convolution: value and gradients, and gradients of those, of XLA's own, in and out of loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning_nets import equations, quick_jit

from irp_jax.models.convolution import convolve

# Kernel size; height, width, channels in, channels out: even, odd, smaller than half the kernel.
CASES = (
    (1, (7, 6, 5, 3)),
    (3, (8, 8, 3, 4)),
    (3, (7, 6, 5, 3)),
    (3, (6, 5, 17, 18)),
    (3, (4, 6, 18, 17)),
    (3, (1, 2, 1, 7)),
    (3, (2, 2, 5, 4)),
    (5, (3, 2, 2, 3)),
    (3, (3, 8, 7, 7)),
    (3, (4, 4, 10, 11)),
    (3, (2, 4, 3, 14)),
    (5, (8, 9, 3, 4)),
    (5, (1, 3, 2, 3)),
)


def reference(images, kernel, stride):
    """JAX's convolution with JAX's gradients, channels first."""
    pad = kernel.shape[0] // 2
    out = jax.lax.conv_general_dilated(
        images.transpose(0, 3, 1, 2),
        kernel.transpose(3, 2, 0, 1),
        (stride, stride),
        ((pad, pad), (pad, pad)),
    )
    return out.transpose(0, 2, 3, 1)


def operands(size, shape, dtype=jnp.float32, batch=3):
    height, width, c_in, c_out = shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, height, width, c_in))
    return images.astype(dtype), rng.normal(size=(size, size, c_in, c_out)).astype(dtype)


def value_and_gradients(function, stride, images, kernel):
    """Output, and the gradients of a loss that is different at every output."""

    def loss(images, kernel):
        out = function(images, kernel, stride)
        weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (weight * jnp.square(out)).sum(), out

    gradients, out = jax.grad(loss, (0, 1), has_aux=True)(images, kernel)
    return out, *gradients


def gradients_of_gradients(function, stride, images, kernel):
    """Gradients of a loss on both gradients: every second derivative takes part."""

    def loss(images, kernel):
        _, *gradients = value_and_gradients(function, stride, images, kernel)
        return sum(jnp.sum(jnp.sin(g / jnp.abs(g).max().astype(g.dtype))) for g in gradients)

    return jax.grad(loss, (0, 1))(images, kernel)


def in_scan(function, stride, images, kernel):
    def body(carry, image):
        return carry + 1, value_and_gradients(function, stride, image[None], kernel)

    return jax.lax.scan(body, 0, images)[1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size,shape", CASES)
def test_value_and_both_gradients_are_those_of_xla(stride, size, shape):
    images, kernel = operands(size, shape)

    @quick_jit
    def both(*args):
        return tuple(value_and_gradients(f, stride, *args) for f in (convolve, reference))

    ours, theirs = both(images, kernel)
    height, width, _, c_out = shape
    assert ours[0].shape == (3, -(-height // stride), -(-width // stride), c_out)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size,shape", [(1, (7, 6, 5, 3)), (3, (7, 6, 5, 3)), (3, (2, 4, 3, 14))])
def test_gradients_of_gradients_are_those_of_xla(stride, size, shape):
    images, kernel = operands(size, shape)

    @quick_jit
    def both(*args):
        return tuple(gradients_of_gradients(f, stride, *args) for f in (convolve, reference))

    for a, b in zip(*both(images, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_scan_changes_nothing(stride, size):
    images, kernel = operands(size, (7, 6, 3, 5))

    @quick_jit
    def both(*args):
        return in_scan(convolve, stride, *args), in_scan(reference, stride, *args)

    for a, b in zip(*both(images, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_over_images_and_over_kernels(stride):
    images, kernel = operands(3, (5, 6, 3, 4))
    kernels = np.stack([kernel, 2 * kernel, -kernel])

    @quick_jit
    @jax.vmap
    def both(*args):
        return tuple(value_and_gradients(f, stride, *args) for f in (convolve, reference))

    for a, b in zip(*both(images[:, None], kernels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_dtype_is_kept(dtype, stride, size):
    images, kernel = operands(size, (4, 4, 2, 2), dtype)
    shapes = jax.eval_shape(
        functools.partial(value_and_gradients, convolve, stride), images, kernel
    )
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("differentiate", [value_and_gradients, gradients_of_gradients])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_keep_the_operand_order_that_is_fast_in_loops(stride, differentiate):
    images, kernel = operands(3, (16, 16, 3, 4))
    jaxpr = jax.make_jaxpr(functools.partial(differentiate, convolve, stride))(images, kernel)
    convolutions = [e for e in equations(jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) >= 2
    for equation in convolutions:
        order = equation.params["dimension_numbers"]
        assert (order.lhs_spec, order.rhs_spec, order.out_spec) == (
            (0, 3, 1, 2),
            (3, 2, 0, 1),
            (0, 3, 1, 2),
        )
        assert equation.params["lhs_dilation"] == (1, 1)
        assert equation.params["rhs_dilation"] == (1, 1)
        # A window as large as the image would be the kernel's gradient, which is to be a product.
        assert max(equation.invars[1].aval.shape[:2]) < 8


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_other_backends_compute_the_same(monkeypatch, stride, size):
    images, kernel = operands(size, (7, 6, 3, 4))
    value = functools.partial(value_and_gradients, convolve, stride)
    here = quick_jit(lambda *args: value(*args))(images, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(here, quick_jit(value)(images, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
