"""The compiled step: it learns, compiles once, and does not change frozen masks."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from irp_jax import attacks, checkpoint, parallel, traced
from irp_jax.config import Config
from irp_jax.data import Augmentation
from irp_jax.inference.function import deployed, network_params
from irp_jax.pruning import compaction, cost, sparse, uniform
from irp_jax.training import optimizer as optimizers
from irp_jax.training.defenses import DEFENSES
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.state import freeze, initial_state
from irp_jax.training.step import Recipe, compile_steps


class Net(nn.Module):
    """A user's network: two convolutions, three classes."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(3)(x.mean((1, 2)))


MODEL = traced.trace(Net(), (8, 8, 1))
GRAPH = MODEL.graph
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), dtype=np.uint8)
LABELS = (IMAGES.astype(np.int32).sum((1, 2, 3)) // 97 % 3).astype(np.int32)
BATCHES = np.random.default_rng(1).integers(0, 96, (6, 32), dtype=np.int32)
CONFIG = Config(budget="0.3", epochs=4, batch_size=32, learning_rate=0.05, prune_stop=0.5)


def begin(config):
    plan = make_plan(config, METHODS[config.method], GRAPH, len(IMAGES))
    params, batch_stats = MODEL.init(jax.random.key(0))
    variables = {"params": params, "batch_stats": batch_stats}
    return plan, initial_state(config, plan, GRAPH, variables)


def program(config, plan, frozen):
    recipe = Recipe(
        graph=GRAPH, cost_kind="macs", threat=attacks.linf(0.02),
        defense=DEFENSES["fgsm-rs"], augmentation=Augmentation(crop_padding=1),
        label_smoothing=0.0,
    )  # fmt: skip
    optimizer = optimizers.build(config, plan, GRAPH, frozen)
    mesh = parallel.mesh(2)
    steps = compile_steps(recipe, MODEL.network, optimizer, mesh)
    whole = parallel.replicated(mesh)
    images, labels, key = parallel.place((IMAGES, LABELS, jax.random.key(0)), whole)

    def run(state):
        state = parallel.place(jax.tree.map(np.array, jax.device_get(state)), whole)
        return steps(state, key=key, images=images, labels=labels, batches=BATCHES)

    return run, steps


def momentum(state):
    return optax.tree_utils.tree_get(state.optimizer.inner_states["weights"], "trace")


def test_steps_compile_once_follow_the_target_and_report_each_step():
    plan, state = begin(CONFIG)
    run, steps = program(CONFIG, plan, frozen=False)
    state, first = run(state)
    state, second = run(state)
    assert steps._cache_size() == 1
    assert {name: values.shape for name, values in first.items()} == {
        "loss": (6,), "cross_entropy": (6,), "train_accuracy": (6,), "cost_ratio": (6,),
    }  # fmt: skip
    assert int(state.step) == 12
    assert second["cost_ratio"][-1] <= plan.ratio + 1e-6
    assert np.isfinite(second["loss"]).all()


def test_the_same_state_and_key_give_the_same_bits():
    plan, state = begin(CONFIG)
    run, _ = program(CONFIG, plan, frozen=False)
    one, _ = run(state)
    two, _ = run(state)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_images_of_the_batches_alone_train_the_same_network():
    plan, state = begin(CONFIG)
    optimizer, mesh = optimizers.build(CONFIG, plan, GRAPH, False), parallel.mesh(2)
    recipe = Recipe(
        graph=GRAPH, cost_kind="macs", threat=attacks.linf(0.02), defense=DEFENSES["n-fgsm"],
        augmentation=Augmentation(flip=True), label_smoothing=0.0, guarded=True,
    )  # fmt: skip
    steps, whole = compile_steps(recipe, MODEL.network, optimizer, mesh), parallel.replicated(mesh)
    batches = BATCHES.reshape(-1, 16)[:5]  # the probe is of the last four
    labels, key = parallel.place((LABELS, jax.random.key(0)), whole)
    own = parallel.place_share(
        IMAGES[batches], parallel.batches(mesh), (*batches.shape, *IMAGES.shape[1:])
    )
    one, two = (
        steps(
            parallel.place(jax.tree.map(np.array, jax.device_get(state)), whole), key=key,
            images=images, labels=labels, batches=batches, view=3,
        )
        for images in (parallel.place(IMAGES, whole), own)
    )  # fmt: skip
    assert {"probe_trained", "probe_pgd"} <= set(one[1])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(params=["channel", "weight"])
def frozen(request):
    config = dataclasses.replace(CONFIG, granularity=request.param)
    plan, state = begin(config)
    run, _ = program(config, plan, frozen=False)
    state, _ = run(state)
    before = deployed(GRAPH, state.params, state.batch_stats)
    after, kept = freeze(config, plan, GRAPH, state)
    return config, plan, before, after, kept


def test_freezing_meets_the_budget_and_training_goes_on_within_it(frozen):
    config, plan, _, state, kept = frozen
    ratio = cost.total(GRAPH, kept).macs / cost.total(GRAPH).macs
    assert 0.8 * plan.ratio <= ratio <= plan.ratio  # with 16 channels the cost has coarse steps
    run, _ = program(config, plan, frozen=True)
    after, metrics = run(state)
    assert np.isfinite(metrics["loss"]).all()
    shapes = [a.shape for a in jax.tree.leaves(state.params)]
    assert [a.shape for a in jax.tree.leaves(after.params)] == shapes
    for name, logits in state.params["masks"].items():
        np.testing.assert_array_equal(after.params["masks"][name], logits)
        for arrays in (after.params["weights"], momentum(after)):
            assert np.all(np.asarray(arrays[name])[np.asarray(logits) < 0] == 0)


def test_a_compact_network_may_start_from_new_weights():
    config = dataclasses.replace(CONFIG, reinit=True, ema=0.9)
    plan, state = begin(config)
    run, _ = program(config, plan, frozen=False)
    state, _ = run(state)
    drawn = dict(zip(("params", "batch_stats"), MODEL.init(jax.random.key(9)), strict=True))
    kept_on, kept = freeze(config, plan, GRAPH, state)
    after, chosen = freeze(config, plan, GRAPH, state, jax.device_get(drawn))
    assert chosen == kept, "the channels are those that were learned"
    assert int(after.step) == int(kept_on.step)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(momentum(after)))
    logits = METHODS["lagrangian"].final_masks(config, plan, GRAPH, jax.device_get(state.params))
    cut = compaction.compact_params(
        GRAPH, jax.device_get(drawn["params"]), compaction.keep_indices(logits)
    )
    new = after.params["weights"]
    assert_same(new, uniform.rescale(GRAPH, cut, kept))
    for leaf in jax.tree.leaves(after.batch_stats):
        assert set(np.unique(leaf)) <= {0.0, 1.0}
    assert_same(after.average, {"weights": new, "batch_stats": after.batch_stats})


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_weight_masks_are_stored_in_bits_and_come_back():
    config = dataclasses.replace(CONFIG, granularity="weight")
    plan, state = begin(config)
    frozen, kept = freeze(config, plan, GRAPH, state)
    weights, masks = frozen.params["weights"], frozen.params["masks"]
    packed = sparse.pack(weights, masks)
    size = sum(np.asarray(a).nbytes for a in jax.tree.leaves(packed))
    assert size < 0.5 * sum(np.asarray(a).nbytes for a in jax.tree.leaves(weights))
    again, gates = sparse.unpack(GRAPH, packed)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, logits in masks.items():
        np.testing.assert_array_equal(gates[name], logits)
    values = [array for name, array in packed.items() if name.endswith("/kernel_values")]
    assert sum(v.size for v in values) == sum(kept.values())
    trained = {"weights": weights, "masks": masks}
    read = network_params(GRAPH, {"weights": packed, "masks": {}})
    found = [checkpoint.digest(deployed(GRAPH, tree, {})) for tree in (trained, read)]
    assert found[0] == found[1]
    dense = deployed(GRAPH, {**trained, "weights": jax.tree.map(lambda a: -a, weights)}, {})
    for leaf in jax.tree.leaves(dense):
        assert not np.signbit(leaf[leaf == 0]).any(), "there is one zero"


def test_a_kernel_of_which_nothing_is_kept_is_stored_too(tmp_path):
    config = dataclasses.replace(CONFIG, granularity="weight", method="hinge")
    _, state = begin(config)
    weights = jax.device_get(state.params["weights"])
    gone = {name: -np.ones_like(logits) for name, logits in state.params["masks"].items()}
    packed = sparse.pack(weights, gone)
    checkpoint.save(tmp_path, 1, {"weights": packed}, None, {})
    saved = checkpoint.restore(tmp_path, None, print)
    again, masks = sparse.unpack(GRAPH, saved.network["weights"])
    for name, logits in gone.items():
        np.testing.assert_array_equal(masks[name], logits)
        assert not again[name].any()
