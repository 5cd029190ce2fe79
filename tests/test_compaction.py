"""Compaction: the compact network computes what the masked one does, at the reported cost."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pruning_nets import (
    abstract_variables,
    elements,
    kept_units,
    named,
    quick_jit,
    random_masks,
    random_variables,
    trace,
    traced_macs,
    zeros,
)

from irp_jax import models, traced
from irp_jax.errors import UserError
from irp_jax.pruning import compaction, cost, masks

# Of the ResNets that differ in depth alone only the two shortest: the others compile for long.
DEEP = {"resnet32", "resnet44", "resnet56", "resnet110"}
NAMES = sorted(set(models.MODELS) - DEEP)
NARROW = {"resnet18", "resnet50", "vgg16", "wrn28_4", "mobilenet_v2"}
each_model = pytest.mark.parametrize(
    "name", [n if n == "resnet8" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)


@each_model
def test_compact_equals_masked(name):
    shape = (8, 8, 3)
    model = named(name, 0.25 if name in NARROW else 1.0, shape, 10)
    dense, network = model.graph, model.network
    variables = random_variables(model, seed=0)
    kept = kept_units(random_masks(dense, "channel", 1))

    @quick_jit
    def masked(variables, logits, images):
        weights = masks.apply(dense, variables["params"], masks.gates(logits))
        return network(weights, variables["batch_stats"], images, train=False)[0]

    def small(variables, images):
        return network(variables["params"], variables["batch_stats"], images, train=False)[0]

    compiled = quick_jit(small)
    everything = jax.tree.map(jnp.ones_like, random_masks(dense, "channel", 0))
    # Each seed keeps other channels but as many, so that the compact network compiles once.
    for seed in range(3):
        images = np.random.default_rng(seed).uniform(size=(4, *shape)).astype(np.float32)
        logits = random_masks(dense, "channel", seed, kept)
        cut = compaction.compact_params(dense, variables, compaction.keep_indices(logits))
        expected = masked(variables, logits, images)
        np.testing.assert_allclose(compiled(cut, images), expected, rtol=0, atol=1e-4)
        # The outputs depend on the images and on the masks.
        assert float(jnp.abs(expected - expected[:1]).max()) > 1e-3
        assert float(jnp.abs(expected - masked(variables, everything, images)).max()) > 0.1


@each_model
def test_the_compact_network_has_the_counted_cost(name):
    model = named(name, 1.0, (8, 8, 3), 10)
    dense, network = model.graph, model.network
    variables = zeros(abstract_variables(model))
    logits = random_masks(dense, "channel", 1)
    cut = compaction.compact_params(dense, variables, compaction.keep_indices(logits))
    kept = kept_units(logits)
    reported = cost.total(dense, kept)
    assert elements(cut["params"]) == reported.params
    assert dense.sizes({**cut["params"], **cut["batch_stats"]}) == kept
    jaxpr, _ = trace(
        lambda cut, images: network(cut["params"], cut["batch_stats"], images, train=False)[0],
        cut,
        jnp.zeros((1, 8, 8, 3)),
    )
    assert traced_macs(jaxpr) == reported.macs


def test_compaction_without_pruning_changes_nothing():
    model = named("resnet8", 0.25, (8, 8, 1), 10)
    dense = model.graph
    everything = compaction.keep_indices(masks.init(dense, "channel"))
    tree = zeros(abstract_variables(model))
    for keep_indices in (everything, {}):
        same = compaction.compact_params(dense, tree, keep_indices)
        assert jax.tree.map(np.shape, same) == jax.tree.map(np.shape, tree)
    assert cost.total(dense, dense.groups) == cost.total(dense)


@pytest.mark.parametrize(
    "name", ["resnet8", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg16", "wrn28_4"))]
)
def test_half_of_every_group_is_the_network_of_half_the_width(name):
    model, narrow = (named(name, width, (8, 8, 1), 10) for width in (1.0, 0.5))
    half = {group: np.arange(size // 2) for group, size in model.graph.groups.items()}
    cut = compaction.compact_params(model.graph, zeros(abstract_variables(model)), half)
    assert jax.tree.map(np.shape, cut) == jax.tree.map(jnp.shape, abstract_variables(narrow))
    kept = {group: kept.size for group, kept in half.items()}
    assert kept == narrow.graph.groups
    assert cost.total(model.graph, kept) == cost.total(narrow.graph)


def test_a_channel_that_leaks_is_seen():
    """One layer still reads a channel that the masks should hide."""
    model = small_residual()
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert compaction.check(model.graph, model.network, params, state) == traced.check(model) < 1e-4
    for name in ("stage1_block0/conv1/kernel", "classifier/kernel"):
        fewer = {key: axes for key, axes in model.graph.reads.items() if key != name}
        with pytest.raises(UserError, match="masked and the compact network differ"):
            compaction.check(
                dataclasses.replace(model.graph, reads=fewer), model.network, params, state
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A training state: a dataclass that contains optimiser states in tuples."""

    step: Any
    params: Any
    batch_stats: Any
    optimizer: Any
    history: Any


class Averages(NamedTuple):
    weights: Any
    count: Any


@functools.cache
def small_residual():
    return traced.trace(models.ResNet((1, 2), (6, 8), 10), (8, 8, 1))


@functools.cache
def training():
    """Returns an optimiser, and one training step of a small residual network."""
    dense, network = small_residual().graph, small_residual().network
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))

    @quick_jit
    def step(state, logits, images, labels):
        def loss(weights):
            gated = masks.apply(dense, weights, masks.gates(logits))
            out, batch_stats = network(gated, state.batch_stats, images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(out, labels)
            return losses.mean(), batch_stats

        gradients, batch_stats = jax.grad(loss, has_aux=True)(state.params["weights"])
        updates, inner = optimizer.update(gradients, state.optimizer, state.params["weights"])
        weights = optax.apply_updates(state.params["weights"], updates)
        params = {**state.params, "weights": weights}
        return State(state.step + 1, params, batch_stats, inner, state.history)

    return optimizer, step


def new_state(seed=0):
    optimizer, _ = training()
    variables = random_variables(small_residual(), seed)
    momentum = jax.tree.map(lambda leaf: jnp.cos(100 * leaf), variables["params"])
    inner = optimizer.init(variables["params"])
    inner = (inner[0], (optax.TraceState(trace=momentum), *inner[1][1:]))
    logits = random_masks(small_residual().graph, "channel", seed)
    return State(
        jnp.int32(7),
        {"weights": variables["params"], "masks": logits},
        variables["batch_stats"],
        inner,
        [Averages(variables["params"], jnp.int32(3)), jnp.arange(5)],
    )


def test_a_whole_training_state_is_cut_alike():
    dense = small_residual().graph
    state = new_state()
    keep_indices = compaction.keep_indices(state.params["masks"])
    small = compaction.compact_params(dense, state, keep_indices)
    weights = small.params["weights"]
    momentum = small.optimizer[1][0].trace
    assert elements(weights) == cost.total(dense, kept_units(state.params["masks"])).params
    jax.tree.map(
        lambda w, m: np.testing.assert_allclose(np.cos(100 * np.asarray(w)), m, atol=1e-4),
        weights,
        momentum,
    )
    jax.tree.map(np.testing.assert_array_equal, weights, small.history[0].weights)
    assert int(small.step) == 7 and int(small.history[0].count) == 3
    assert small.history[1].shape == (5,)
    jax.tree.map(np.testing.assert_array_equal, small.params["masks"], state.params["masks"])


def test_training_and_then_cutting_is_cutting_and_then_training():
    dense, (_, step) = small_residual().graph, training()
    state = new_state()
    logits = state.params["masks"]
    images = np.random.default_rng(5).uniform(size=(16, 8, 8, 1)).astype(np.float32)
    labels = np.arange(16, dtype=np.int32) % 10
    keep_indices = compaction.keep_indices(logits)
    first = compaction.compact_params(dense, step(state, logits, images, labels), keep_indices)
    then = step(compaction.compact_params(dense, state, keep_indices), {}, images, labels)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), first.params, then.params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        (first.batch_stats, first.optimizer),
        (then.batch_stats, then.optimizer),
    )


class Nested(nn.Module):
    """An outer and an inner layer with the same name."""

    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3), use_bias=False, name="conv")(images))
        x = Nested.Inside(name="inside")(x)
        return nn.Dense(3, name="last")(x.mean((1, 2)))


def test_layers_are_told_apart_by_their_whole_path():
    model = traced.trace(Nested(), (4, 4, 2))
    weights = zeros(abstract_variables(model))["params"]
    keep_indices = {"conv": np.array([1, 3]), "inside/conv": np.array([0, 2, 7])}
    assert set(keep_indices) == set(model.graph.groups)
    # "count" is not an array of the network.
    small = compaction.compact_params(
        model.graph, {"momentum": (weights,), "count": np.zeros(4)}, keep_indices
    )
    assert jax.tree.map(np.shape, small["momentum"][0]) == {
        "conv/kernel": (3, 3, 2, 2),
        "inside/conv/kernel": (3, 3, 2, 3),
        "last/kernel": (3, 3),
        "last/bias": (3,),
    }
    assert small["count"].shape == (4,)


def test_the_channels_kept_are_those_with_a_positive_logit():
    logits = {"a": jnp.array([0.1, -0.1, 0.0, 5.0]), "b": jnp.array([-1.0, 1.0])}
    keep_indices = compaction.keep_indices(logits)
    assert {name: kept.tolist() for name, kept in keep_indices.items()} == {"a": [0, 3], "b": [1]}
