"""The baselines: uniform keep rates, width scaling, magnitude pruning, and whole runs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from baseline_nets import SHAPE, Net, Stopping, begun, described, random_weights, variables
from scipy import stats

from irp_jax import checkpoint, loading, traced
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.pruning import admm, cost, magnitude, masks, uniform
from irp_jax.training import experiment
from irp_jax.training import optimizer as optimizers
from irp_jax.training.methods import METHODS
from irp_jax.training.optimizer import one_cycle, restarted
from irp_jax.training.plan import make_plan
from irp_jax.training.state import freeze

# ---- one rate for all --------------------------------------------------------------------------


def test_the_largest_common_factor_within_the_budget_counted_by_hand():
    graph = described(Net())
    # MACs of two layers of c channels: 9 * 64 * c + 9 * 64 * c * c, and 3 * c for the logits.
    # That is 41,496 for c = 8, 51,867 for c = 9 and 156,720 for c = 16.
    for limit, channels in ((41_496, 8), (51_866, 8), (51_867, 9), (156_720, 16), (1_155, 1)):
        assert uniform.keep_counts(graph, "channel", "macs", limit) == {
            "first": channels,
            "second": channels,
        }


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("budget", [0.05, 0.31, 0.9])
def test_no_larger_factor_fits_and_none_is_skipped(kind, budget):
    graph = described(Net(a=10, b=24))
    limit = math.floor(budget * getattr(cost.total(graph), kind))
    # Rounded counts change where a size times the factor is a multiple of 1 / 2.
    halves = {(j + 0.5) / size + 1e-9 for size in (10, 24) for j in range(size)}
    sizes = {"first": 10, "second": 24}
    counts = [{n: max(1, round(s * f)) for n, s in sizes.items()} for f in {0.0, *halves}]
    fitting = [c for c in counts if getattr(cost.total(graph, c), kind) <= limit]
    best = max(fitting, key=lambda c: getattr(cost.total(graph, c), kind))
    assert uniform.keep_counts(graph, "channel", kind, limit) == best


def test_the_narrowed_network_is_the_one_that_is_built_narrow():
    graph = traced.named("resnet8", 1.0, SHAPE, 10).graph
    kept = uniform.keep_counts(graph, "channel", "macs", cost.total(graph).macs // 5)
    factor = kept["stage3_block0/conv2"] / 64
    narrow = traced.named("resnet8", factor, SHAPE, 10).graph
    assert kept == dict(narrow.groups)
    assert cost.total(graph, kept) == cost.total(narrow)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_weights_are_fine_enough_to_spend_the_budget(kind):
    graph = described(Net(a=12, b=30))
    limit = getattr(cost.total(graph), kind) // 4
    kept = uniform.keep_counts(graph, "weight", kind, limit)
    spent = getattr(cost.total(graph, kept), kind)
    assert 0.99 * limit <= spent <= limit
    rates = [kept[name] / size for name, size in masks.units(graph, "weight").items()]
    assert max(rates) - min(rates) <= 1 / 100


# ---- width scaling -----------------------------------------------------------------------------


def test_the_cut_start_is_a_draw_from_the_narrow_networks_distribution():
    wide, config = Net(64, 96, classes=40), Config(method="width", budget="0.2", batch_size=32)
    graph, plan, state = begun(config, wide)
    assert state.params["masks"] == {} and plan.freeze_epoch == 0
    frozen, kept = freeze(config, plan, graph, state)
    assert 0.95 * plan.limit <= cost.total(graph, kept).macs <= plan.limit
    narrow = variables(Net(kept["first"], kept["second"], classes=40), seed=1)["params"]
    found = frozen.params["weights"]
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, narrow)
    for name in ("first", "second", "classifier"):
        ours, theirs = (np.ravel(tree[f"{name}/kernel"]) for tree in (found, narrow))
        assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.12)
        assert stats.ks_2samp(ours, theirs).pvalue > 0.05
        uncut = np.ravel(variables(wide)["params"][f"{name}/kernel"])
        assert name == "first" or stats.ks_2samp(uncut, theirs).pvalue < 1e-3
    assert np.all(found["norm2/scale"] == 1) and np.all(found["norm2/bias"] == 0)


# ---- magnitude ---------------------------------------------------------------------------------


def test_norms_take_all_layers_that_write_a_channel():
    graph, weights = described(Net(4, 3, skip=True)), random_weights(Net(4, 3, skip=True), 0)
    kernels = magnitude.kernels(graph, weights)
    names = ("first/kernel", "third/kernel", "second/kernel")
    assert set(kernels) == set(names)
    found = magnitude.norms(graph, kernels, "channel")
    first, third, second = (weights[name] for name in names)
    for c in range(4):
        square = np.sum(first[:, :, :, c] ** 2) + np.sum(third[:, :, :, c] ** 2)
        assert found["first"][c] == pytest.approx(math.sqrt(square), rel=1e-5)
    for c in range(3):
        assert found["second"][c] == pytest.approx(np.linalg.norm(second[:, :, :, c]), rel=1e-5)
    single = magnitude.norms(graph, kernels, "weight")
    np.testing.assert_array_equal(single["third/kernel"], np.abs(third))


def test_the_largest_stay_and_of_equals_the_first():
    scores = {"x": jnp.array([0.5, 2.0, 2.0, 1.0]), "y": jnp.array([[0.0, 3.0], [1.0, 0.0]])}
    found = magnitude.largest(scores, {"x": 1, "y": 3})
    assert found["x"].tolist() == [-1, 1, -1, -1]
    assert found["y"].tolist() == [[1, 1], [1, -1]]


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("method", ["magnitude", "admm"])
def test_the_smallest_units_are_cut_at_one_rate_and_the_others_are_unchanged(method, granularity):
    net = Net(a=8, b=16)
    config = Config(method=method, granularity=granularity, budget="0.3", batch_size=32, epochs=6)
    graph, plan, state = begun(config, net)
    weights = random_weights(net, 6)
    state = dataclasses.replace(state, params={"weights": weights, "masks": {}})
    if method == "admm":  # U must not influence which units are cut
        other = jax.tree.map(
            lambda leaf: 9 * jnp.flip(leaf), admm.pulled(graph, weights, granularity)
        )
        optimizer = optax.tree_utils.tree_set(state.optimizer, dual=other)
        state = dataclasses.replace(state, optimizer=optimizer)
    frozen, kept = freeze(config, plan, graph, state)
    assert kept == uniform.keep_counts(graph, granularity, "macs", plan.limit)
    left = frozen.params["weights"]
    if granularity == "channel":

        def size(conv, norm):  # magnitude uses the kernels, ADMM also scales and biases
            size = np.sum(weights[f"{conv}/kernel"] ** 2, (0, 1, 2))
            norms = (weights[f"{norm}/scale"], weights[f"{norm}/bias"]) if method == "admm" else ()
            return size + sum(np.square(array) for array in norms)

        a, b = (
            np.sort(np.argsort(-size(conv, norm))[: kept[conv]])
            for conv, norm in (("first", "norm1"), ("second", "norm2"))
        )
        assert len(a) < 8 and len(b) / 16 == pytest.approx(len(a) / 8, abs=0.07)
        np.testing.assert_array_equal(
            left["second/kernel"], weights["second/kernel"][:, :, a][..., b]
        )
        np.testing.assert_array_equal(left["classifier/kernel"], weights["classifier/kernel"][b])
    else:
        for name in ("first/kernel", "second/kernel"):
            size = np.abs(weights[name])
            stays = size >= np.sort(size, axis=None)[-kept[name]]
            expected = np.where(stays, weights[name], 0.0)
            np.testing.assert_array_equal(left[name], expected)
            np.testing.assert_array_equal(frozen.params["masks"][name] > 0, stays)
    optimizer = optimizers.build(config, plan, graph, frozen=True)
    fresh = jax.eval_shape(optimizer.init, frozen.params)
    assert jax.tree.structure(frozen.optimizer) == jax.tree.structure(fresh)


# ---- stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "stages", "freeze"),
    [
        ({"method": "lagrangian"}, (0,), 2),
        ({"method": "lagrangian", "prune_stop": 0.28, "epochs": 25}, (0,), 7),
        ({"method": "width"}, (0,), 0),
        ({"method": "magnitude"}, (0, 3), 3),
        ({"method": "magnitude", "pretraining": 0.99}, (0, 8), 8),
        ({"method": "admm"}, (0, 3, 6), 6),
        ({"method": "admm", "pretraining": 0.01, "admm_stage": 0.01}, (0, 1, 2), 2),
        ({"method": "admm", "pretraining": 0.98, "admm_stage": 0.01}, (0, 7, 8), 8),
    ],
)
def test_stages_have_an_epoch_each_at_least(change, stages, freeze):
    config = Config(**{"budget": "0.3", "epochs": 9, "batch_size": 32} | change)
    configs.check(config)
    plan = make_plan(config, METHODS[config.method], described(Net()), 96)
    assert (plan.stages, plan.freeze_epoch) == (stages, freeze)


@pytest.mark.parametrize("method", ["lagrangian", "hinge", "width"])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_the_smallest_budget_that_an_error_names_is_accepted(method, kind, granularity):
    for width in range(20, 40):
        graph = described(Net(width))
        for asked in ("1e-6", "0.001k"):
            config = Config(
                budget=asked, cost=kind, method=method, granularity=granularity, batch_size=32
            )
            with pytest.raises(UserError, match="the least possible is") as error:
                make_plan(config, METHODS[config.method], graph, 96)
            named = str(error.value).partition("least possible is ")[2].split()[0]
            config = dataclasses.replace(config, budget=named)
            assert make_plan(config, METHODS[config.method], graph, 96).limit >= 1


def test_the_learning_rate_starts_anew_with_each_stage():
    whole, alone = restarted(one_cycle, 0.2, [0], 50), one_cycle(0.2, 50)
    assert [float(whole(s)) for s in range(50)] == [float(alone(s)) for s in range(50)]
    rate = restarted(one_cycle, 0.2, [0, 10, 30], 40, later=0.5)
    values = [float(rate(s)) for s in range(41)]
    assert [values[0], values[10], values[30]] == [0, 0, 0]
    assert values[4] == pytest.approx(0.2)
    assert values[18] == pytest.approx(0.1)
    assert values[34] == pytest.approx(0.1)
    assert max(values) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "width", "granularity": "weight"}, "--granularity=channel"),
        ({"method": "admm", "epochs": 2}, "at least 3"),
        ({"method": "magnitude", "epochs": 1}, "at least 2"),
        ({"method": "admm", "pretraining": 0.7}, "below 1"),
        ({"method": "magnitude", "pretraining": 1.0}, "below 1"),
        ({"admm_rho": 0.0}, "positive"),
        ({"admm_updates": 0}, r"in \[1, 1,000,000\], got 0"),
        ({"restart_rate": -1.0}, "positive"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        configs.check(Config(**change))


# ---- whole runs --------------------------------------------------------------------------------


def configured(folder, method, granularity):
    return dataclasses.replace(
        configs.suited("digits", Config(model="resnet8", budget="0.3", ema=0.9)),
        method=method, granularity=granularity, epochs=6, batch_size=256, checkpoint_every=0.0,
        admm_rho=0.1, admm_updates=3, defense="none", workdir=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "granularity"),
    [("width", "channel"), ("magnitude", "weight"), ("admm", "channel"), ("admm", "weight")],
)
def test_runs_are_on_budget_and_a_killed_one_ends_alike(quick_runs, tmp_path, method, granularity):
    config = configured(tmp_path / "whole", method, granularity)
    results = experiment.run(config, Stopping(), "bin/train")
    share, unused = results["cost"]["macs_ratio"], results["budget"]["unused"]
    assert results["method"] == method
    assert share <= 0.3
    assert unused == pytest.approx(1 - share / 0.3, abs=1e-3)
    assert unused < (0.25 if granularity == "channel" else 0.005)  # eight channels are coarse
    pruned = {"width": 0, "magnitude": 2, "admm": 4}[method]
    assert [row["frozen"] for row in results["history"]] == [e > pruned for e in range(1, 7)]
    ratios = [row["cost_ratio"] for row in results["history"]]
    assert ratios == pytest.approx([share if e > pruned else 1.0 for e in range(1, 7)])
    loaded = loading.load(config.workdir, print)
    assert loaded.cost == results["cost"]
    weights = jax.tree.leaves(loaded.variables["params"])
    assert sum(np.count_nonzero(leaf) for leaf in weights) <= results["cost"]["params"]
    if (method, granularity) != ("admm", "weight"):
        return

    killed = dataclasses.replace(config, workdir=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        experiment.run(killed, Stopping(stop=4), "bin/train")
    # Killed within the ADMM stage after 15 steps, 5 per epoch. Z and U were updated at step 14.
    saved = checkpoint.restore(tmp_path / "killed" / "checkpoints", None, print)
    assert saved.epoch == 3
    again = experiment.run(killed, Stopping(), "bin/train")
    assert [row["loss"] for row in again["history"]] == [row["loss"] for row in results["history"]]
    ends = [checkpoint.restore(tmp_path / name / "checkpoints", None, print).network
            for name in ("whole", "killed")]  # fmt: skip
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])
