"""Cost: exact counts, XLA's own count, and a gradient that finite differences confirm."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import kept_units, random_masks

from irp_jax import models
from irp_jax.models.architecture import Architecture, Layer
from irp_jax.pruning import cost, masks

DENSE = models.describe(models.build("resnet20", 10), (32, 32, 3))
REGULARITIES: tuple[masks.Regularity, ...] = ("channel", "weight")
KINDS: tuple[cost.Kind, ...] = ("macs", "params")


@functools.cache
def compiled_ratio(kind):
    return jax.jit(jax.value_and_grad(lambda gates: cost.ratio(DENSE, kind, masks.kept(gates))))


def xla_flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def distinct(layers):
    """One layer of each size."""
    sizes = lambda a: (a.kind, a.window, a.positions, a.channels_in, a.channels_out)  # noqa: E731
    return list({sizes(layer): layer for layer in layers}.values())


@pytest.mark.parametrize("layer", distinct(DENSE.kernels), ids=lambda layer: layer.name)
def test_macs_are_half_the_flops_xla_counts(layer):
    """XLA leaves products with padding out, so the image here comes with its border in place."""
    if layer.kind == "dense":
        flops = xla_flops(jnp.matmul, (1, layer.channels_in), (layer.channels_in, 10))
    else:
        side, size = (round(n**0.5) for n in (layer.positions, layer.window))
        image = (1, side + size - 1, side + size - 1, layer.channels_in)
        flops = xla_flops(
            lambda x, k: jax.lax.conv_general_dilated(
                x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            image,
            (size, size, layer.channels_in, layer.channels_out),
        )
    assert cost.layer_cost(layer, {}).macs == flops / 2


def test_macs_of_a_strided_shortcut_are_half_the_flops_xla_counts():
    (layer,) = [layer for layer in DENSE.layers if layer.name == "stage2_block0/shortcut"]
    flops = xla_flops(
        functools.partial(models.layers.convolve, stride=2), (1, 32, 32, 16), (1, 1, 16, 32)
    )
    assert cost.layer_cost(layer, {}).macs == flops / 2


def test_one_layer_by_hand():
    conv = Layer(
        path=("x",),
        kind="conv",
        reads="in",
        writes="out",
        channels_in=6,
        channels_out=5,
        window=9,
        positions=16,
        bias=False,
    )
    dense = dataclasses.replace(conv, kind="dense", window=1, positions=1, bias=True)
    norm = dataclasses.replace(conv, path=("y",), kind="norm", window=0, reads="out", channels_in=5)
    assert cost.layer_cost(conv, {}) == cost.Cost(macs=16 * 9 * 6 * 5, params=9 * 6 * 5)
    kept = {"in": 2, "out": 3}
    assert cost.layer_cost(conv, kept) == cost.Cost(macs=16 * 9 * 2 * 3, params=9 * 2 * 3)
    assert cost.layer_cost(dense, kept) == cost.Cost(macs=2 * 3, params=2 * 3 + 3)
    assert cost.layer_cost(norm, kept) == cost.Cost(macs=0, params=2 * 3)
    assert cost.layer_cost(conv, {"x": 7}) == cost.Cost(macs=16 * 7, params=7)
    assert cost.layer_cost(dense, {"x": 7}) == cost.Cost(macs=7, params=7 + 5)
    assert cost.layer_cost(norm, {"x": 7}) == cost.Cost(macs=0, params=10)


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


@pytest.mark.parametrize("regularity", REGULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_on_is_ratio_one(regularity, kind):
    gates = masks.gates(masks.init(DENSE, regularity))
    np.testing.assert_allclose(compiled_ratio(kind)(gates)[0], 1.0, rtol=1e-6)
    units = masks.units(DENSE, regularity)
    assert cost.total(DENSE, units) == cost.total(DENSE)


@given(st.integers(0, 10**6), st.sampled_from(REGULARITIES), st.sampled_from(KINDS))
def test_the_float_ratio_is_the_exact_one(seed, regularity, kind):
    logits = random_masks(DENSE, regularity, seed)
    exact = cost.total(DENSE, kept_units(logits))
    assert type(exact.macs) is int and type(exact.params) is int
    ratio, _ = compiled_ratio(kind)(masks.gates(logits))
    assert ratio.dtype == jnp.float32
    expected = getattr(exact, kind) / getattr(cost.total(DENSE), kind)
    np.testing.assert_allclose(ratio, expected, rtol=2e-6)


@pytest.mark.parametrize("regularity", REGULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_finite_difference(regularity, kind):
    logits = random_masks(DENSE, regularity, 3)
    kept = kept_units(logits)
    _, gradient = compiled_ratio(kind)(masks.gates(logits))
    dense = getattr(cost.total(DENSE), kind)
    for name, values in gradient.items():
        # No layer reads what it writes, so the cost is linear in each group: any step is exact.
        for step in (1, -1):
            more = getattr(cost.total(DENSE, {**kept, name: kept[name] + step}), kind)
            slope = (more - getattr(cost.total(DENSE, kept), kind)) / (step * dense)
            np.testing.assert_allclose(values, np.full(values.shape, slope), rtol=1e-5)


def test_the_gradient_of_mask_logits_passes_through_the_gates():
    logits = random_masks(DENSE, "channel", 4)

    def ratio(logits):
        return cost.ratio(DENSE, "macs", masks.kept(masks.gates(logits)))

    _, by_gates = compiled_ratio("macs")(masks.gates(logits))
    for name, found in jax.jit(jax.grad(ratio))(logits).items():
        slope = 0.5 * (1 - np.tanh(np.asarray(logits[name], np.float64)) ** 2)
        np.testing.assert_allclose(found, slope * by_gates[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("regularity", REGULARITIES)
def test_the_floors_cost_little(regularity):
    least = cost.total(DENSE, masks.floors(DENSE, regularity))
    assert 0 < least.macs < 0.02 * cost.total(DENSE).macs
    for seed in range(5):
        other = cost.total(DENSE, kept_units(random_masks(DENSE, regularity, seed)))
        assert other.macs >= least.macs and other.params >= least.params


@pytest.mark.parametrize("regularity", REGULARITIES)
def test_the_table_adds_up(regularity):
    kept = kept_units(random_masks(DENSE, regularity, 0))
    rows = cost.table(DENSE, kept)
    total, dense = cost.total(DENSE, kept), cost.total(DENSE)
    assert [row["layer"] for row in rows] == [layer.name for layer in DENSE.kernels]
    assert sum(row["macs"] for row in rows) == total.macs
    assert sum(row["dense_macs"] for row in rows) == dense.macs
    norms = [layer for layer in DENSE.layers if layer.kind == "norm"]
    norm_params = sum(cost.layer_cost(layer, kept).params for layer in norms)
    assert sum(row["params"] for row in rows) + norm_params == total.params
    row = rows[1]
    assert row["dense_channels_in"] == row["dense_channels_out"] == 16
    if regularity == "channel":
        assert (row["channels_in"], row["channels_out"]) == (
            kept["stage1"],
            kept["stage1_block0.inner"],
        )
        assert row["macs"] == 1024 * 9 * row["channels_in"] * row["channels_out"]
    else:
        assert row["macs"] == 1024 * kept["stage1_block0/conv1"]


def test_large_images_do_not_overflow():
    dense = models.describe(models.build("resnet18", 10), (224, 224, 3))
    assert cost.total(dense).macs == 27_215_467_520 > 2**32

    @jax.jit
    def ratio(gates):
        return cost.ratio(dense, "macs", masks.kept(gates))

    np.testing.assert_allclose(ratio(masks.gates(masks.init(dense, "channel"))), 1.0, rtol=1e-6)


def test_a_network_without_layers_costs_nothing():
    assert cost.total(Architecture(())) == cost.Cost(macs=0, params=0)
