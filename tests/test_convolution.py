"""Convolution: the value and both gradients of XLA's own, in and out of loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irp_jax.models.convolution import convolve

# Height, width, channels in, channels out: even, odd, and smaller than the largest kernel.
SHAPES = ((8, 8, 3, 4), (7, 5, 5, 3), (2, 3, 1, 7))
CASES = list(itertools.product((1, 2), (1, 3, 5), SHAPES))


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
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.normal(keys[0], (batch, height, width, c_in), dtype)
    return images, jax.random.normal(keys[1], (size, size, c_in, c_out), dtype)


def value_and_gradients(function, stride, images, kernel):
    """Output, and the gradients of a loss that is different at every output."""

    def loss(images, kernel):
        out = function(images, kernel, stride)
        weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (weight * jnp.square(out)).sum(), out

    gradients, out = jax.grad(loss, (0, 1), has_aux=True)(images, kernel)
    return out, *gradients


def in_scan(function, stride, images, kernel):
    def body(carry, image):
        return carry + 1, value_and_gradients(function, stride, image[None], kernel)

    return jax.lax.scan(body, 0, images)[1]


@pytest.mark.parametrize("stride,size,shape", CASES)
def test_value_and_both_gradients_are_those_of_xla(stride, size, shape):
    images, kernel = operands(size, shape)

    @jax.jit
    def both(*args):
        return tuple(value_and_gradients(f, stride, *args) for f in (convolve, reference))

    ours, theirs = both(images, kernel)
    height, width, _, c_out = shape
    assert ours[0].shape == (3, -(-height // stride), -(-width // stride), c_out)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("stride,size", itertools.product((1, 2), (1, 3, 5)))
def test_scan_changes_nothing(stride, size):
    images, kernel = operands(size, (7, 6, 3, 5))

    @jax.jit
    def both(*args):
        return in_scan(convolve, stride, *args), in_scan(reference, stride, *args)

    for a, b in zip(*both(images, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_over_images_and_over_kernels(stride):
    images, kernel = operands(3, (5, 6, 3, 4))
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    ours, theirs = (
        jax.vmap(functools.partial(value_and_gradients, f, stride))(images[:, None], kernels)
        for f in (convolve, reference)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stride,size", itertools.product((1, 2), (1, 3)))
def test_dtype_is_kept(dtype, stride, size):
    images, kernel = operands(size, (4, 4, 2, 2), dtype)
    shapes = jax.eval_shape(
        functools.partial(value_and_gradients, convolve, stride), images, kernel
    )
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_keep_the_operand_order_that_is_fast_in_loops(stride):
    images, kernel = operands(3, (8, 8, 3, 4))
    jaxpr = jax.make_jaxpr(functools.partial(value_and_gradients, convolve, stride))(images, kernel)
    convolutions = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 2  # The value and the image gradient: the kernel's is a product.
    for equation in convolutions:
        order = equation.params["dimension_numbers"]
        assert (order.lhs_spec, order.rhs_spec, order.out_spec) == (
            (0, 3, 1, 2),
            (3, 2, 0, 1),
            (0, 3, 1, 2),
        )
        assert equation.params["lhs_dilation"] == (1, 1)
        assert equation.params["rhs_dilation"] == (1, 1)
        assert max(equation.invars[1].aval.shape[:2]) == 3


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("stride,size", itertools.product((1, 2), (1, 3)))
def test_other_backends_compute_the_same(monkeypatch, stride, size):
    images, kernel = operands(size, (7, 6, 3, 4))
    here = value_and_gradients(convolve, stride, images, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(here, value_and_gradients(convolve, stride, images, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
