"""Options of training: weight averaging, gradient clipping and learning rate schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_nets import (
    CONFIG,
    GRAPH,
    PIXELS,
    assert_equal,
    initial,
    make_setup,
)

from irp_jax import config as configs
from irp_jax.errors import UserError
from irp_jax.training import checkpoints, progress
from irp_jax.training import optimizer as optimizers
from irp_jax.training.methods import METHODS
from irp_jax.training.optimizer import SCHEDULES
from irp_jax.training.plan import make_plan
from irp_jax.training.state import TrainState, freeze, initial_state, update_average

SETTINGS = (("channel", 0.0), ("channel", 0.9), ("weight", 0.9))


@pytest.fixture(scope="module")
def variables():
    return initial()


def test_the_average_follows_by_hand():
    state, latest = {"w": jnp.array([0.0, 8.0])}, {"w": jnp.array([10.0, 8.0])}
    first = update_average(state, latest, jnp.int32(0), 0.5)
    np.testing.assert_allclose(first["w"], [9.0, 8.0], rtol=1e-6)  # the first decay is 1 / 10
    late = update_average(first, latest, jnp.int32(1000), 0.75)
    np.testing.assert_allclose(late["w"], [9.25, 8.0], rtol=1e-6)
    assert update_average(None, latest, jnp.int32(0), 0.5) is None


def _distinct(state):
    """Returns a state in which no two arrays are equal, so that a mix-up is noticed."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == np.int32:
            return leaf
        if leaf.dtype == np.int8:
            return rng.integers(-127, 128, leaf.shape).astype(np.int8)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, jax.device_get(state))


@pytest.mark.parametrize(("granularity", "ema"), SETTINGS)
def test_the_freeze_cuts_the_average_too_and_what_is_saved_comes_back(granularity, ema, tmp_path):
    config = dataclasses.replace(CONFIG, granularity=granularity, ema=ema, defense="fgsm-mep")
    fixed = make_setup(config)
    begun = progress.start(fixed)
    state = _distinct(begun.state)
    frozen, kept = freeze(config, fixed.plan, GRAPH, state)
    assert_equal(frozen.memory, state.memory)
    used = frozen.network
    shapes = [
        [a.shape for a in jax.tree.leaves(t)] for t in (used["weights"], frozen.params["weights"])
    ]
    assert shapes[0] == shapes[1]
    kernel = np.asarray(used["weights"]["Conv_0/kernel"])
    before = state.network
    source = before["weights"]["Conv_0/kernel"]
    if granularity == "channel":
        assert kernel.shape[-1] == kept["Conv_0"] < 16
        assert {*map(tuple, kernel.reshape(18, -1).T)} < {*map(tuple, source.reshape(18, -1).T)}
        mean = "batch_stats/BatchNorm_0/mean"
        assert set(used["batch_stats"][mean]) < set(before["batch_stats"][mean])
    else:
        hidden = np.asarray(frozen.params["masks"]["Conv_0/kernel"]) < 0
        assert hidden.any()
        np.testing.assert_array_equal(kernel, np.where(hidden, 0, source))

    checkpoints.save(
        fixed, dataclasses.replace(begun, epoch=2, keep_counts=kept, state=frozen), tmp_path
    )
    resumed = checkpoints.resume(fixed, tmp_path, print)
    assert_equal(resumed.state, frozen)


def test_without_options_a_state_holds_no_more_than_it_did(variables):
    plan = make_plan(CONFIG, METHODS[CONFIG.method], GRAPH, len(PIXELS))
    state = initial_state(CONFIG, plan, GRAPH, variables)
    assert isinstance(state, TrainState)
    assert (state.average, state.memory) == (None, None)
    assert state.network["weights"] is state.params["weights"]


def test_a_gradient_longer_than_the_clip_is_shortened_and_no_other(variables):
    config = dataclasses.replace(CONFIG, clip=2.0, weight_decay=0.0, method="magnitude")
    config = dataclasses.replace(config, schedule="cosine", learning_rate=0.5)
    plan = make_plan(config, METHODS[config.method], GRAPH, len(PIXELS))
    state = initial_state(config, plan, GRAPH, variables)
    optimizer = optimizers.build(config, plan, GRAPH, frozen=False)
    for size, expected in ((1.0, None), (1e3, 2.0)):
        gradients = optax.tree_utils.tree_ones_like(state.params)
        scale = size / optax.tree_utils.tree_norm(gradients)
        gradients = optax.tree_utils.tree_scale(scale, gradients)
        updates, _ = optimizer.update(gradients, state.optimizer, state.params)
        length = optax.tree_utils.tree_norm(updates["weights"])
        assert length == pytest.approx(0.5 * (expected or size), rel=1e-5)


def test_schedules_at_known_steps():
    cyclic, cosine, piecewise = (SCHEDULES[n](0.2, 100) for n in ("cyclic", "cosine", "piecewise"))
    assert [cyclic(s) for s in (0, 40, 70, 100)] == pytest.approx([0, 0.2, 0.1, 0], abs=1e-6)
    assert [cosine(s) for s in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0], abs=1e-6)
    assert [piecewise(s) for s in (0, 49, 50, 74, 75, 99)] == pytest.approx(
        [0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    )
    assert np.isfinite([SCHEDULES[n](0.2, 1)(0) for n in SCHEDULES]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defense": "trade"}, "trades"),
        ({"attack_steps": 0}, r"--attack-steps must be in \[1, 1,000,000\], got 0"),
        ({"attack_steps": 3 * 10**9}, "--attack-steps must be in .*, got 3,000,000,000"),
        ({"ema": 1.0}, r"--ema must be in \[0, 1\)"),
        ({"clip": -1.0}, "--clip must be at least 0"),
        ({"schedule": "cosin"}, "cosine"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        configs.check(dataclasses.replace(CONFIG, **change))
