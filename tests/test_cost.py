"""Cost: exact counts, XLA's count, and a gradient checked by finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import kept_units, named, random_masks

from irp_jax.graph import ChannelGraph, Extent, Layer
from irp_jax.pruning import cost, masks

DENSE = named("resnet20", 1.0, (32, 32, 3), 10).graph
GRANULARITIES: tuple[masks.Granularity, ...] = ("channel", "weight")
KINDS: tuple[cost.Kind, ...] = ("macs", "params")


@functools.cache
def compiled_ratio(kind):
    return jax.jit(
        jax.value_and_grad(lambda gates: cost.ratio(DENSE, kind, masks.keep_counts(gates)))
    )


def xla_flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def convolve(stride, images, kernel):
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=order
    )


def distinct(layers):
    """Returns one layer of each size."""
    sizes = lambda a: (a.kind, a.uses, tuple(extent.size for extent in a.extents))  # noqa: E731
    return list({sizes(layer): layer for layer in layers}.values())


@pytest.mark.parametrize("layer", distinct(DENSE.layers), ids=lambda layer: layer.name)
def test_macs_are_half_the_flops_xla_counts(layer):
    """XLA does not count products with padding, so the image is padded before the layer."""
    channels_in, channels_out = layer.channels({})
    if layer.kind == "dense":
        flops = xla_flops(jnp.matmul, (1, channels_in), (channels_in, channels_out))
    else:
        side, size = math.isqrt(layer.uses), layer.extents[0].size
        image = (1, side + size - 1, side + size - 1, channels_in)
        kernel = (size, size, channels_in, channels_out)
        flops = xla_flops(functools.partial(convolve, 1), image, kernel)
    assert layer.macs({}) == flops / 2


def test_macs_of_a_strided_shortcut_are_half_the_flops_xla_counts():
    (layer,) = [layer for layer in DENSE.layers if layer.name == "stage2_block0/shortcut"]
    flops = xla_flops(functools.partial(convolve, 2), (1, 32, 32, 16), (1, 1, 16, 32))
    assert layer.macs({}) == flops / 2


IN, OUT = Extent("group", 6, "in"), Extent("group", 5, "out")
CONV = Layer(
    name="x", kind="conv", kernel="x/kernel", reads=(2,), writes=(3,), uses=16,
    extents=(Extent("fixed", 3), Extent("fixed", 3), IN, OUT),
)  # fmt: skip
PRODUCT = Layer(
    name="y", kind="dense", kernel="y/kernel", reads=(0,), writes=(1,), uses=1, extents=(IN, OUT)
)


def graph_of(layers, **others):
    """Returns a graph with groups `in` and `out`, the kernels of some layers and other arrays."""
    kernels = {layer.kernel: layer.extents for layer in layers if layer.kernel}
    return ChannelGraph(
        groups={"in": 6, "out": 5}, layers=tuple(layers), params={**kernels, **others}, state={},
        reads={}, whole=(), image_shape=(4, 4, 1), classes=2, any_batch=True, fingerprint="",
    )  # fmt: skip


def test_one_layer_by_hand():
    conv, dense = graph_of([CONV]), graph_of([PRODUCT], **{"y/bias": (OUT,)})
    norm = graph_of([], **{"z/scale": (OUT,), "z/bias": (OUT,)})
    assert cost.total(conv) == cost.Cost(macs=16 * 9 * 6 * 5, params=9 * 6 * 5)
    kept = {"in": 2, "out": 3}
    assert cost.total(conv, kept) == cost.Cost(macs=16 * 9 * 2 * 3, params=9 * 2 * 3)
    assert cost.total(dense, kept) == cost.Cost(macs=2 * 3, params=2 * 3 + 3)
    assert cost.total(norm, kept) == cost.Cost(macs=0, params=2 * 3)
    assert cost.total(conv, {"x/kernel": 7}) == cost.Cost(macs=16 * 7, params=7)
    assert cost.total(dense, {"y/kernel": 7}) == cost.Cost(macs=7, params=7 + 5)
    assert cost.total(norm, {"x/kernel": 7}) == cost.Cost(macs=0, params=10)


def test_concatenated_and_flattened_channels_by_hand():
    """One kernel reads two concatenated groups. Another reads 4 pixels of each channel."""
    both = Extent("concatenation", 11, "", (IN, OUT))
    flat = Extent("product", 24, "", (Extent("fixed", 4), IN))
    joined = Layer(
        name="x", kind="dense", kernel="x", reads=(0,), writes=(1,), uses=7, extents=(both, OUT)
    )
    dense = Layer(
        name="y", kind="dense", kernel="y", reads=(0,), writes=(1,), uses=1, extents=(flat, OUT)
    )
    kept = {"in": 2, "out": 3}
    assert cost.total(graph_of([joined])) == cost.Cost(macs=7 * 11 * 5, params=11 * 5)
    assert cost.total(graph_of([joined]), kept) == cost.Cost(macs=7 * 5 * 3, params=5 * 3)
    assert cost.total(graph_of([dense]), kept) == cost.Cost(macs=8 * 3, params=8 * 3)


def test_a_product_of_activations_costs_operations_and_no_parameters():
    product = Layer(
        name="attention", kind="matmul", kernel=None, reads=(), writes=(), uses=10,
        extents=(Extent("fixed", 3),), around=(IN, OUT),
    )  # fmt: skip
    assert cost.total(graph_of([product])) == cost.Cost(macs=10 * 3 * 6 * 5, params=0)
    kept = {"in": 2, "out": 3}
    assert cost.total(graph_of([product]), kept) == cost.Cost(macs=10 * 3 * 2 * 3, params=0)
    (row,) = cost.table(graph_of([product]), kept)
    assert (row["macs"], row["params"]) == (180, 0)


def test_half_of_every_group_by_hand():
    kept = {group: size // 2 for group, size in DENSE.groups.items()}
    stem = 9 * 3 * 8
    stage1 = 6 * 9 * 8 * 8
    stage2 = 9 * 8 * 16 + 5 * 9 * 16 * 16 + 8 * 16
    stage3 = 9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32
    norms = 2 * 7 * (8 + 16 + 32)
    assert cost.total(DENSE, kept) == cost.Cost(
        macs=1024 * (stem + stage1) + 256 * stage2 + 64 * stage3 + 320,
        params=stem + stage1 + stage2 + stage3 + 320 + 10 + norms,
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_on_is_ratio_one(granularity, kind):
    gates = masks.gates(masks.init(DENSE, granularity))
    np.testing.assert_allclose(compiled_ratio(kind)(gates)[0], 1.0, rtol=1e-6)
    units = masks.units(DENSE, granularity)
    assert cost.total(DENSE, units) == cost.total(DENSE)


@given(st.integers(0, 10**6), st.sampled_from(GRANULARITIES), st.sampled_from(KINDS))
def test_the_float_ratio_is_the_exact_one(seed, granularity, kind):
    logits = random_masks(DENSE, granularity, seed)
    exact = cost.total(DENSE, kept_units(logits))
    assert type(exact.macs) is int and type(exact.params) is int
    ratio, _ = compiled_ratio(kind)(masks.gates(logits))
    assert ratio.dtype == jnp.float32
    expected = exact.of(kind) / cost.total(DENSE).of(kind)
    np.testing.assert_allclose(ratio, expected, rtol=2e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_finite_difference(granularity, kind):
    logits = random_masks(DENSE, granularity, 3)
    kept = kept_units(logits)
    _, gradient = compiled_ratio(kind)(masks.gates(logits))
    dense = cost.total(DENSE).of(kind)
    for name, values in gradient.items():
        # No layer reads a group that it writes, so the cost is linear in each group.
        for step in (1, -1):
            more = cost.total(DENSE, {**kept, name: kept[name] + step}).of(kind)
            slope = (more - cost.total(DENSE, kept).of(kind)) / (step * dense)
            np.testing.assert_allclose(values, np.full(values.shape, slope), rtol=1e-5)


def test_the_gradient_of_mask_logits_passes_through_the_gates():
    logits = random_masks(DENSE, "channel", 4)

    def ratio(logits):
        return cost.ratio(DENSE, "macs", masks.keep_counts(masks.gates(logits)))

    _, by_gates = compiled_ratio("macs")(masks.gates(logits))
    for name, found in jax.jit(jax.grad(ratio))(logits).items():
        slope = 0.5 * (1 - np.tanh(np.asarray(logits[name], np.float64)) ** 2)
        np.testing.assert_allclose(found, slope * by_gates[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_minimum_keep_counts_cost_little(granularity):
    least = cost.total(DENSE, masks.min_keep(DENSE, granularity))
    assert 0 < least.macs < 0.02 * cost.total(DENSE).macs
    for seed in range(5):
        other = cost.total(DENSE, kept_units(random_masks(DENSE, granularity, seed)))
        assert other.macs >= least.macs and other.params >= least.params


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_table_adds_up(granularity):
    kept = kept_units(random_masks(DENSE, granularity, 0))
    rows = cost.table(DENSE, kept)
    total, dense = cost.total(DENSE, kept), cost.total(DENSE)
    assert [row["layer"] for row in rows] == [layer.name for layer in DENSE.layers]
    assert sum(row["macs"] for row in rows) == total.macs
    assert sum(row["dense_macs"] for row in rows) == dense.macs
    kernels = {layer.kernel for layer in DENSE.layers}
    others = [extents for name, extents in DENSE.params.items() if name not in kernels]
    assert all(len(extents) == 1 for extents in others), "norms and a bias"
    other_params = sum(extent.count(kept) for (extent,) in others)
    assert sum(row["params"] for row in rows) + other_params == total.params
    row = rows[1]
    assert row["dense_channels_in"] == row["dense_channels_out"] == 16
    if granularity == "channel":
        assert (row["channels_in"], row["channels_out"]) == (
            kept["stem"],
            kept["stage1_block0/conv1"],
        )
        assert row["macs"] == 1024 * 9 * row["channels_in"] * row["channels_out"]
    else:
        assert row["macs"] == 1024 * kept["stage1_block0/conv1/kernel"]


def test_large_images_do_not_overflow():
    dense = named("resnet18", 1.0, (448, 448, 3), 10).graph
    assert cost.total(dense).macs == 7_254_250_496 > 2**32

    @jax.jit
    def ratio(gates):
        return cost.ratio(dense, "macs", masks.keep_counts(gates))

    np.testing.assert_allclose(ratio(masks.gates(masks.init(dense, "channel"))), 1.0, rtol=1e-6)


def test_a_network_without_layers_costs_nothing():
    assert cost.total(graph_of([])) == cost.Cost(macs=0, params=0)
