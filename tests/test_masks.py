"""Masks: hard gates, straight-through gradients, and the effect on the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import abstract_variables, elements, kept_units, named, quick_jit, random_masks

from irp_jax import models, traced
from irp_jax.pruning import cost, masks

SHAPE = (8, 8, 1)
MODEL = traced.trace(models.ResNet((1, 1), (6, 8), 10), SHAPE)
DENSE = MODEL.graph
GRANULARITIES: tuple[masks.Granularity, ...] = ("channel", "weight")
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


def numbers(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_weights(seed=0):
    shapes = abstract_variables(MODEL)["params"]
    return {name: numbers(a.shape, (seed, i)) for i, (name, a) in enumerate(shapes.items())}


@given(LOGITS)
def test_gates_are_exactly_zero_or_one(logits):
    logits = jnp.array(logits, jnp.float32)
    gates = masks.binarise(logits)
    assert gates.dtype == jnp.float32
    np.testing.assert_array_equal(gates, np.where(np.asarray(logits) > 0, 1.0, 0.0))


def test_a_logit_of_zero_is_pruned():
    assert float(masks.binarise(jnp.float32(0.0))) == 0.0
    assert float(masks.binarise(jnp.float32(-0.0))) == 0.0


@given(LOGITS)
def test_the_gradient_is_that_of_the_soft_mask(logits):
    logits = np.array(logits, np.float32)
    incoming = np.array([1.0, -2.0, 0.5, 3.0, -1.0], np.float32)
    expected = incoming * 0.5 * (1 - np.tanh(logits.astype(np.float64)) ** 2)
    found = jax.grad(lambda m: (incoming * masks.binarise(m)).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    _, tangent = jax.jvp(masks.binarise, (jnp.asarray(logits),), (jnp.asarray(incoming),))
    np.testing.assert_allclose(tangent, expected, rtol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_one_logit_a_unit_that_starts_kept(granularity):
    logits = masks.init(DENSE, granularity)
    units = masks.units(DENSE, granularity)
    assert {name: values.size for name, values in logits.items()} == units
    assert {values.dtype for values in logits.values()} == {jnp.dtype(jnp.float32)}
    assert all(float(values.min()) > 0 for values in logits.values())
    if granularity == "weight":
        params = abstract_variables(MODEL)["params"]
        kernels = {layer.kernel for layer in DENSE.layers}
        assert set(logits) == kernels - {"classifier/kernel"}, "every class keeps all its weights"
        for name, values in logits.items():
            assert values.shape == params[name].shape
    else:
        assert logits["stage2_block0/conv2"].shape == (8,)


def test_minimum_keep_counts_by_hand():
    dense = named("resnet8", 1.0, (32, 32, 3), 10).graph
    channel, weight = masks.min_keep(dense, "channel"), masks.min_keep(dense, "weight")
    assert channel["stem"] == 1 and channel["stage2_block0/conv2"] == 2
    assert channel["stage3_block0/conv1"] == 4
    assert weight["stem/kernel"] == 3 + 16  # Of 432.
    assert weight["stage3_block0/shortcut/kernel"] == 32 + 64  # Of 2048.
    assert "classifier/kernel" not in weight
    narrow = named("resnet8", 0.25, (32, 32, 3), 10).graph
    assert masks.min_keep(narrow, "weight")["stage3_block0/shortcut/kernel"] == 16  # Of 128.
    thin = named("resnet8", 0.1, (8, 8, 1), 10).graph
    assert set(masks.min_keep(thin, "channel").values()) == {1}
    assert masks.min_keep(thin, "weight")["stage2_block0/shortcut/kernel"] == 1  # Of 2 by 3.


@pytest.mark.parametrize("seed", range(3))
def test_channel_masks_hide_a_channel_from_all_layers_that_read_it_and_change_nothing_else(seed):
    weights = random_weights(seed)
    gates = masks.gates(random_masks(DENSE, "channel", seed))
    masked = masks.apply(DENSE, weights, gates)
    assert jax.tree.map(np.shape, masked) == jax.tree.map(np.shape, weights)
    for layer in DENSE.layers:
        before, after = np.asarray(weights[layer.kernel]), np.asarray(masked[layer.kernel])
        group = layer.extents[-2].group
        alive = np.asarray(gates[group]) == 1 if group else np.ones(before.shape[-2], bool)
        np.testing.assert_array_equal(after[..., alive, :], before[..., alive, :])
        assert not after[..., ~alive, :].any()
    for name in set(weights) - {layer.kernel for layer in DENSE.layers}:
        np.testing.assert_array_equal(masked[name], weights[name])


@pytest.mark.parametrize("seed", range(3))
def test_weight_masks_leave_as_many_parameters_as_are_counted(seed):
    weights = random_weights(seed)
    logits = random_masks(DENSE, "weight", seed)
    masked = masks.apply(DENSE, weights, masks.gates(logits))
    left = {layer.kernel: np.count_nonzero(masked[layer.kernel]) for layer in DENSE.layers}
    assert left == kept_units(logits) | {"classifier/kernel": 8 * 10}
    gone = sum(weights[name].size - count for name, count in left.items())
    found = cost.total(DENSE, kept_units(logits))
    assert found.params == elements(weights) - gone == sum(map(np.count_nonzero, masked.values()))
    assert found.macs == sum(left[layer.kernel] * layer.uses for layer in DENSE.layers)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_on_changes_nothing_and_missing_names_mask_nothing(granularity):
    weights = random_weights()
    gates = masks.gates(masks.init(DENSE, granularity))
    for some in (gates, {}):
        jax.tree.map(np.testing.assert_array_equal, masks.apply(DENSE, weights, some), weights)
    name = "stem" if granularity == "channel" else "stem/kernel"
    off = masks.apply(DENSE, weights, {name: jnp.zeros_like(gates[name])})
    changed = {key for key in weights if not np.array_equal(off[key], weights[key])}
    if granularity == "channel":
        readers = ("stage1_block0/conv1", "stage2_block0/conv1", "stage2_block0/shortcut")
        assert changed == {f"{reader}/kernel" for reader in readers}
    else:
        assert changed == {"stem/kernel"}


def test_the_weights_given_are_not_changed():
    weights = random_weights()
    copy = jax.tree.map(np.copy, weights)
    masks.apply(DENSE, weights, masks.gates(random_masks(DENSE, "channel", 0)))
    jax.tree.map(np.testing.assert_array_equal, weights, copy)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mask_and_weight_gradients_through_apply(granularity):
    weights = random_weights()
    logits = random_masks(DENSE, granularity, 1)

    def loss(weights):
        # The gradient of each layer depends on all other layers, as in a network.
        kernels = [jnp.sin(leaf).sum() for leaf in jax.tree.leaves(weights)]
        return jnp.square(jnp.stack(kernels).sum()) * 1e-3

    @quick_jit
    def gradients(weights, logits):
        def through(weights, gates):
            return loss(masks.apply(DENSE, weights, gates))

        learned = jax.grad(lambda w, m: through(w, masks.gates(m)), (0, 1))(weights, logits)
        # The gates are independent inputs here, as if there were no rounding.
        plain = jax.grad(through, (0, 1))(weights, masks.gates(logits))
        return learned, plain

    (by_weights, by_logits), (plain_weights, by_gates) = gradients(weights, logits)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), by_weights, plain_weights
    )
    for name, values in logits.items():
        slope = 0.5 * (1 - np.tanh(np.asarray(values, np.float64)) ** 2)
        np.testing.assert_allclose(by_logits[name], slope * by_gates[name], rtol=1e-4, atol=1e-9)
        assert float(jnp.abs(by_logits[name]).max()) > 0
    # The logit of a pruned unit has a gradient, so that it can be restored. Its weights have none.
    gates = masks.gates(logits)
    pruned = jnp.concatenate([by_gates[name][gates[name] == 0].ravel() for name in gates])
    assert float((pruned != 0).mean()) > 0.9
    if granularity == "weight":
        for name in logits:
            assert not np.asarray(by_weights[name])[np.asarray(gates[name]) == 0].any()


def test_kept_counts_units():
    gates = {"a": jnp.array([1.0, 0.0, 1.0]), "b": jnp.ones((2, 3))}
    assert {name: float(n) for name, n in masks.keep_counts(gates).items()} == {"a": 2.0, "b": 6.0}
