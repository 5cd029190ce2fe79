"""Convolution has the value, gradients and second derivatives of XLA's, also in loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning_nets import equations, quick_jit

from irp_jax.graph.fast_convolution import Window, convolution, convolve

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

# Rows and columns of the kernel, strides, zeros before and after; height, width, channels.
SETTINGS = (
    ((2, 2), (2, 2), (0, 0), (0, 0), (8, 6, 3, 4)),
    ((2, 2), (1, 1), (0, 0), (1, 1), (5, 6, 3, 4)),  # "SAME" of an even kernel.
    ((3, 3), (2, 2), (0, 0), (1, 1), (8, 8, 3, 4)),  # "SAME" of an even image.
    ((4, 4), (2, 2), (1, 1), (1, 1), (8, 6, 2, 5)),
    ((4, 3), (1, 1), (3, 2), (3, 2), (4, 5, 3, 2)),  # The largest padding allowed.
    ((3, 3), (1, 1), (0, 0), (0, 0), (7, 5, 3, 4)),
    ((3, 3), (1, 1), (0, 2), (2, 0), (6, 6, 2, 3)),
    ((1, 5), (1, 1), (0, 2), (0, 2), (4, 7, 3, 4)),
    ((5, 1), (1, 2), (2, 0), (1, 0), (6, 7, 3, 4)),
    ((7, 3), (3, 2), (2, 0), (1, 2), (9, 8, 2, 3)),
    ((2, 3), (3, 4), (1, 0), (0, 1), (8, 9, 3, 2)),  # Pixels between windows.
    ((3, 2), (2, 1), (0, 1), (0, 0), (8, 5, 2, 3)),  # The last row is not read.
    ((3, 3), (2, 3), (2, 1), (0, 2), (7, 7, 4, 9)),
    ((5, 4), (1, 1), (0, 0), (0, 0), (5, 4, 3, 6)),  # A window as large as the image.
    ((3, 3), (4, 4), (1, 1), (1, 1), (2, 3, 3, 2)),  # A stride beyond the image.
    ((1, 1), (3, 2), (0, 0), (0, 0), (7, 6, 3, 4)),
    ((4, 4), (4, 4), (0, 0), (0, 0), (8, 8, 3, 5)),  # Patches.
)

LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CWHN", "IOHW", "NHCW"))


def reference(window):
    """Returns JAX's convolution with JAX's gradients, channels first."""

    def apply(images, kernel):
        out = jax.lax.conv_general_dilated(
            images.transpose(0, 3, 1, 2),
            kernel.transpose(3, 2, 0, 1),
            window.strides,
            list(zip(window.low, window.high, strict=True)),
        )
        return out.transpose(0, 2, 3, 1)

    return apply


def ours(window):
    return functools.partial(convolve, window=window)


def both_ways(size, stride):
    """Returns our and JAX's convolution with an odd square kernel, padded by size // 2."""
    window = Window((stride,) * 2, (size // 2,) * 2, (size // 2,) * 2)
    return ours(window), reference(window)


def numbers(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def operands(size, shape, dtype=jnp.float32, batch=3):
    height, width, c_in, c_out = shape
    rows, columns = (size, size) if isinstance(size, int) else size
    return numbers((batch, height, width, c_in), (rows, columns, c_in, c_out), dtype=dtype)


def value_and_gradients(function, images, kernel):
    """Returns the output and the gradients of a loss that weights every output differently."""

    def loss(images, kernel):
        out = function(images, kernel)
        weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (weight * jnp.square(out)).sum(), out

    gradients, out = jax.grad(loss, (0, 1), has_aux=True)(images, kernel)
    return out, *gradients


def gradients_of_gradients(function, images, kernel):
    """Returns gradients of a loss on both gradients, which include all second derivatives."""

    def loss(images, kernel):
        _, *gradients = value_and_gradients(function, images, kernel)
        return sum(jnp.sum(jnp.sin(g / jnp.abs(g).max().astype(g.dtype))) for g in gradients)

    return jax.grad(loss, (0, 1))(images, kernel)


def in_scan(function, images, kernel):
    def body(carry, image):
        return carry + 1, value_and_gradients(function, image[None], kernel)

    return jax.lax.scan(body, 0, images)[1]


def assert_alike(functions, arrays, differentiate=value_and_gradients, rtol=1e-4):
    """Checks that two functions have the same value and derivatives. Returns those of the first."""

    @quick_jit
    def both(*args):
        return tuple(differentiate(function, *args) for function in functions)

    found, expected = both(*arrays)
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-4 * float(jnp.abs(b).max()))
    return found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size,shape", CASES)
def test_value_and_both_gradients_are_those_of_xla(stride, size, shape):
    found = assert_alike(both_ways(size, stride), operands(size, shape))
    height, width, _, c_out = shape
    assert found[0].shape == (3, -(-height // stride), -(-width // stride), c_out)


@pytest.mark.parametrize("taps,strides,low,high,shape", SETTINGS)
def test_any_window_has_value_and_both_gradients_of_xla(taps, strides, low, high, shape):
    window = Window(strides, low, high)
    found = assert_alike((ours(window), reference(window)), operands(taps, shape))
    assert found[0].shape[1:3] == window.outputs(shape[:2], taps)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size,shape", [(1, (7, 6, 5, 3)), (3, (7, 6, 5, 3)), (3, (2, 4, 3, 14))])
def test_gradients_of_gradients_are_those_of_xla(stride, size, shape):
    arrays = operands(size, shape)
    assert_alike(both_ways(size, stride), arrays, gradients_of_gradients, rtol=1e-3)


@pytest.mark.parametrize("taps,strides,low,high,shape", SETTINGS[2::3])
def test_any_window_has_gradients_of_gradients_of_xla(taps, strides, low, high, shape):
    window = Window(strides, low, high)
    functions = ours(window), reference(window)
    assert_alike(functions, operands(taps, shape), gradients_of_gradients, rtol=1e-3)


def laid_out(layout, **settings):
    """Returns `convolution` and JAX's own, both for arrays in this layout."""
    dimensions = {"dimension_numbers": layout, **settings}

    def theirs(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, **dimensions)

    def other(images, kernel):
        (equation,) = jax.make_jaxpr(theirs)(images, kernel).eqns
        return convolution(images, kernel, equation.params)

    return other, theirs


def arrays_in(layout, images, kernel):
    """Returns random arrays with sizes given by axis, in the order of the layout."""
    pairs = zip(layout[:2], (images, kernel), strict=True)
    return numbers(*([sizes[axis] for axis in names] for names, sizes in pairs))


SIZES = {"N": 3, "H": 7, "W": 6, "C": 4}
TAPS = {"H": 3, "W": 2, "I": 4, "O": 5}
SETTING = {"window_strides": (2, 1), "padding": [(1, 1), (0, 1)]}


@pytest.mark.parametrize("differentiate", [value_and_gradients, gradients_of_gradients])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, differentiate):
    arrays = arrays_in(layout, SIZES, TAPS)
    assert_alike(laid_out(layout, **SETTING), arrays, differentiate, rtol=1e-3)


@pytest.mark.parametrize("differentiate", [value_and_gradients, gradients_of_gradients])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_depthwise(layout, strides, differentiate):
    arrays = arrays_in(layout, SIZES, {**TAPS, "I": 1, "O": 4})
    setting = {**SETTING, "window_strides": strides, "feature_group_count": 4}
    functions = laid_out(layout, **setting)
    assert_alike(functions, arrays, differentiate, rtol=1e-3)
    jaxpr = jax.make_jaxpr(functools.partial(differentiate, functions[0]))(*arrays)
    names = {equation.primitive.name for equation in equations(jaxpr)}
    assert "conv_general_dilated" not in names, "a sum over the taps, which XLA fuses"


OTHERS = (
    ({"rhs_dilation": (2, 2)}, SIZES, TAPS),
    ({"lhs_dilation": (2, 1)}, SIZES, TAPS),
    ({"padding": [(3, 0), (0, 0)]}, SIZES, TAPS),
    ({"padding": [(-1, 0), (0, 0)]}, SIZES, TAPS),
    ({"feature_group_count": 2}, SIZES, {**TAPS, "I": 2, "O": 6}),
    ({"feature_group_count": 4}, SIZES, {**TAPS, "I": 1, "O": 8}),
    ({"batch_group_count": 2}, {**SIZES, "N": 4}, {**TAPS, "O": 6}),
    ({}, {**SIZES, "H": 1}, {**TAPS, "H": 4}),  # The output is empty.
)


@pytest.mark.parametrize("setting,images,kernel", OTHERS)
def test_cases_without_a_faster_way_are_unchanged(setting, images, kernel):
    layout = LAYOUTS[1]
    arrays = arrays_in(layout, images, kernel)
    functions = laid_out(layout, **{**SETTING, **setting})
    found, expected = (jax.make_jaxpr(function)(*arrays) for function in functions)
    assert str(found) == str(expected)


def test_images_of_one_or_three_axes_are_left_as_they_are():
    for axes in ("H", "HWD"):
        layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
        sizes = dict.fromkeys(axes, 5) | {"N": 2, "C": 3}
        arrays = arrays_in(layout, sizes, dict.fromkeys(axes, 3) | {"I": 3, "O": 4})
        functions = laid_out(layout, window_strides=(1,) * len(axes), padding="SAME")
        found, expected = (jax.make_jaxpr(function)(*arrays) for function in functions)
        assert str(found) == str(expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_scan_changes_nothing(stride, size):
    assert_alike(both_ways(size, stride), operands(size, (7, 6, 3, 5)), in_scan)


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_over_images_and_over_kernels(stride):
    images, kernel = operands(3, (5, 6, 3, 4))
    kernels = np.stack([kernel, 2 * kernel, -kernel])

    def mapped(function, *arrays):
        return jax.vmap(functools.partial(value_and_gradients, function))(*arrays)

    assert_alike(both_ways(3, stride), (images[:, None], kernels), mapped)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_dtype_is_kept(dtype, stride, size):
    images, kernel = operands(size, (4, 4, 2, 2), dtype)
    function, _ = both_ways(size, stride)
    shapes = jax.eval_shape(functools.partial(value_and_gradients, function), images, kernel)
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("differentiate", [value_and_gradients, gradients_of_gradients])
@pytest.mark.parametrize("window", [
    Window((1, 1), (1, 1), (1, 1)), Window((2, 2), (1, 1), (1, 1)), Window((2, 1), (0, 2), (1, 0)),
])  # fmt: skip
def test_gradients_keep_the_operand_order_that_is_fast_in_loops(window, differentiate):
    images, kernel = operands(3, (16, 16, 3, 4))
    jaxpr = jax.make_jaxpr(functools.partial(differentiate, ours(window)))(images, kernel)
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
        # A window as large as the image is the gradient of the kernel, which must be a product.
        assert max(equation.invars[1].aval.shape[:2]) < 8


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_other_backends_compute_the_same(monkeypatch, stride, size, groups):
    """Other backends use the primitive, with XLA's own gradients."""
    layout = LAYOUTS[0]
    taps = {"H": size, "W": size, "I": 4 // groups, "O": 4}
    arrays = arrays_in(layout, SIZES, taps)
    pad = size // 2
    function, theirs = laid_out(
        layout, window_strides=(stride, stride), padding=[(pad, pad), (pad, pad)],
        feature_group_count=groups,
    )  # fmt: skip
    value = functools.partial(value_and_gradients, function)
    here = quick_jit(lambda *args: value(*args))(*arrays)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(jax.make_jaxpr(function)(*arrays)) == str(jax.make_jaxpr(theirs)(*arrays))
    for a, b in zip(here, quick_jit(value)(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
