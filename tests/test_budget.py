"""Budgets: met exactly, without empty layers; the cost follows the sparsity schedule."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from budget_nets import (
    GRANULARITIES,
    KINDS,
    LARGE,
    SMALL,
    TINY,
    assert_minimum,
    exact_ratio,
    random_scores,
    with_one_more,
)
from pruning_nets import kept_units, quick_jit, random_masks

from irp_jax.pruning import cost, mask_rules, masks
from irp_jax.pruning.bounds import around

# The sparsity schedule.


def test_the_sparsity_schedule_is_one_then_falls_to_the_budget_and_stays():
    target = mask_rules.sparsity_schedule(0.16, 10, 50)
    found = [float(target(jnp.int32(step))) for step in range(80)]
    np.testing.assert_allclose(found[:11], 1.0)
    np.testing.assert_allclose(found[50:], 0.16, rtol=1e-6)
    assert all(a > b for a, b in itertools.pairwise(found[10:51]))
    np.testing.assert_allclose(found[30], 0.16 + 0.84 * 0.125, rtol=1e-6)
    assert float(mask_rules.sparsity_schedule(0.3, 5, 5)(jnp.int32(6))) == pytest.approx(0.3)


# Solving for the multiplier.


@functools.cache
def solver(granularity, kind):
    graph = LARGE if granularity == "channel" else TINY
    bounds = around(graph, granularity, kind, 0.0)

    @quick_jit
    def solve(score, goal):
        ratio = functools.partial(cost.ratio, graph, kind)
        return mask_rules.solve(score, bounds(goal), ratio, goal)[1]

    return graph, solve


def above(score, thresholds):
    return {name: int((np.asarray(s) > thresholds[name]).sum()) for name, s in score.items()}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_solve_meets_the_goal_as_well_as_units_allow(granularity, kind):
    graph, solve = solver(granularity, kind)
    least = masks.min_keep(graph, granularity)
    for seed, goal in enumerate((0.0, 0.02, 0.04, 0.1, 0.16, 0.3, 0.5, 0.7, 0.99, 1.0)):
        score = random_scores(graph, granularity, seed)
        thresholds = {name: float(t) for name, t in solve(score, jnp.float32(goal)).items()}
        kept = above(score, thresholds)
        assert_minimum(graph, granularity, kept)
        free = {name: t for name, t in thresholds.items() if kept[name] > least[name]}
        ratio = exact_ratio(graph, kind, kept)
        if not free:
            assert ratio >= goal and kept == least
            continue
        assert ratio <= goal * (1 + 1e-6)
        # One threshold holds for all masks above their minimum. No lower one meets the goal.
        assert max(free.values()) - min(free.values()) < 1e-5
        if goal < 1.0:
            (threshold, *_) = free.values()
            best = {n: s[s <= min(threshold, thresholds[n])] for n, s in score.items()}
            name = max((n for n in best if best[n].size), key=lambda n: best[n].max())
            more = {**kept, name: kept[name] + 1}
            # Two scores may be closer together than the precision of the bisection.
            assert exact_ratio(graph, kind, more) > goal - 1e-5


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_solve_keeps_more_when_more_is_allowed(granularity):
    graph, solve = solver(granularity, "macs")
    score = random_scores(graph, granularity, 0)
    counts = [above(score, solve(score, jnp.float32(g))) for g in np.linspace(0, 1, 12)]
    for less, more in itertools.pairwise(counts):
        assert all(more[name] >= less[name] for name in less)
    assert counts[-1] == masks.units(graph, granularity)


# The default rule, with random gradients of given size.


def run_lagrangian(graph, granularity, kind, target, sizes, steps, later=None, **settings):
    """Returns mask name -> logits after each of `steps` updates, with leading axis steps.

    Args:
        sizes: mask name -> standard deviation of each gate's gradient.
        later: the same for the second half of the steps.
    """
    rule = mask_rules.lagrangian(graph, granularity, kind, target, **settings)
    start = masks.init(graph, granularity)
    rng = np.random.default_rng(0)
    noise = {n: rng.normal(size=(steps, *m.shape)).astype(np.float32) for n, m in start.items()}
    for name, values in noise.items():
        values[: steps // 2] *= sizes[name]
        values[steps // 2 :] *= (later or sizes)[name]

    @quick_jit
    def run(start, noise):
        def body(carry, by_gates):
            logits, state = carry
            gradients = jax.tree.map(lambda g, m: masks.slope(m) * g, by_gates, logits)
            updates, state = rule.update(gradients, state, logits)
            # The same rounding as in optax.apply_updates.
            logits = jax.tree.map(lambda m, u: m + u, logits, updates)
            return (logits, state), logits

        return jax.lax.scan(body, (start, rule.init(start)), noise)[1]

    return jax.device_get(run(start, noise))


def test_logits_compare_across_masks_where_one_is_at_its_minimum():
    poor = "stage2_block1/conv1"
    sizes = random_sizes(LARGE, "channel", 1)
    sizes[poor] = 1e-3 * sizes[poor]
    history = run_lagrangian(
        LARGE, "channel", "macs", mask_rules.sparsity_schedule(0.5, 0, 1), sizes, 60
    )
    logits = {name: values[-1] for name, values in history.items()}
    assert (logits[poor] > 0).sum() == masks.min_keep(LARGE, "channel")[poor]
    assert logits[poor][logits[poor] < 0].max() < -3
    limit = int(0.51 * cost.total(LARGE).macs)
    filled = kept_units(mask_rules.best_within(LARGE, logits, "channel", "macs", limit))
    assert filled[poor] == masks.min_keep(LARGE, "channel")[poor]


def kept_history(logits):
    """Returns mask name -> units kept after each step."""
    steps = range(len(next(iter(logits.values()))))
    return [kept_units({name: values[step] for name, values in logits.items()}) for step in steps]


def random_sizes(graph, granularity, seed):
    rng = np.random.default_rng(seed)
    return {
        name: np.exp(rng.normal(0, 1) + rng.normal(0, 1, m.shape)).astype(np.float32)
        for name, m in masks.init(graph, granularity).items()
    }


@pytest.mark.parametrize(
    "granularity,kind,goal",
    [("channel", "macs", 0.16), ("channel", "params", 0.04), ("weight", "macs", 0.16)],
)
def test_the_cost_follows_the_schedule_and_every_minimum_holds(granularity, kind, goal):
    graph = LARGE if granularity == "channel" else TINY
    ramp_end = 120
    target = mask_rules.sparsity_schedule(goal, 20, ramp_end)
    sizes = random_sizes(graph, granularity, 1)
    history = kept_history(run_lagrangian(graph, granularity, kind, target, sizes, 200))
    for step, kept in enumerate(history):
        now = float(target(jnp.int32(step)))
        ratio = exact_ratio(graph, kind, kept)
        assert_minimum(graph, granularity, kept)
        assert ratio <= now * (1 + 1e-6), step
        if now >= 1.0:
            assert ratio == 1.0
            continue
        # The cost is below the target by no more than one unit.
        costs = [exact_ratio(graph, kind, k) for k in with_one_more(kept, graph, granularity)]
        assert max(costs) > now - 1e-4, step
    changes = sum(a != b for a, b in itertools.pairwise(history[ramp_end:]))
    assert changes > 10  # Units are still pruned and restored.


def test_exactly_the_minimum_is_kept_however_often_the_order_of_units_changes():
    """Scores are near zero: the last unit kept is above the threshold by less than rounding."""
    marginal_costs = jax.grad(lambda gates: cost.ratio(SMALL, "macs", masks.keep_counts(gates)))(
        masks.gates({n: jnp.ones(size) for n, size in masks.min_keep(SMALL, "channel").items()})
    )
    sizes = {
        name: np.full(m.shape, np.sqrt(marginal_costs[name][0]), np.float32)
        for name, m in masks.init(SMALL, "channel").items()
    }
    target = mask_rules.sparsity_schedule(1e-6, 0, 1)
    history = kept_history(run_lagrangian(SMALL, "channel", "macs", target, sizes, 400, decay=0.5))
    assert all(kept == masks.min_keep(SMALL, "channel") for kept in history[1:])


def test_unimportant_units_are_pruned_first_and_one_that_becomes_important_is_restored():
    sizes = {name: np.ones(m.shape, np.float32) for name, m in masks.init(SMALL, "channel").items()}
    for name in sizes:
        sizes[name][: sizes[name].size // 2] = 1e-3
    later = {name: values.copy() for name, values in sizes.items()}
    later["stage2_block0/conv2"][0] = 30.0
    target = mask_rules.sparsity_schedule(0.2, 5, 50)
    logits = run_lagrangian(SMALL, "channel", "macs", target, sizes, 200, later)
    for values in logits.values():
        worthless, worthy = np.split(values[99], 2)
        assert worthless.max() < 0 and worthless.max() < worthy.min()
    assert logits["stage2_block0/conv2"][99, 0] < 0 < logits["stage2_block0/conv2"][199, 0]


def test_a_logit_is_half_the_log_of_importance_over_multiplier_times_cost():
    """All units of a group cost the same. Their logits differ by the log ratio of gradients."""
    rule = mask_rules.lagrangian(SMALL, "channel", "macs", lambda step: jnp.float32(0.5))
    logits = masks.init(SMALL, "channel")
    sizes = {name: np.geomspace(1, 50, m.size).astype(np.float32) for name, m in logits.items()}
    gradients = {name: masks.slope(m) * sizes[name] for name, m in logits.items()}
    updates, state = quick_jit(rule.update)(gradients, rule.init(logits), logits)
    assert int(state.step) == 1
    for name, m in logits.items():
        np.testing.assert_allclose(state.importance[name], 0.02 * sizes[name] ** 2, rtol=1e-4)
        found = np.asarray(m + updates[name])
        np.testing.assert_allclose(found - found[0], np.log(sizes[name]), atol=2e-3)


def test_it_survives_units_without_any_gradient():
    rule = mask_rules.lagrangian(SMALL, "channel", "macs", lambda step: jnp.float32(0.3))
    logits = masks.init(SMALL, "channel")
    zero = jax.tree.map(jnp.zeros_like, logits)
    updates, _ = quick_jit(rule.update)(zero, rule.init(logits), logits)
    moved = jax.tree.map(lambda m, u: m + u, logits, updates)
    assert all(bool(jnp.isfinite(m).all()) for m in moved.values())
    assert_minimum(SMALL, "channel", kept_units(moved))


# The published rule.


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_hinge_is_the_gradient_taken_by_hand(granularity):
    logits = random_masks(TINY, granularity, 2)
    ratio = exact_ratio(TINY, "macs", kept_units(logits))
    gradients = {n: jnp.asarray(v) for n, v in random_scores(TINY, granularity, 0).items()}
    # The marginal cost of each mask is an exact difference.
    kept = kept_units(logits)
    marginal_costs = {
        name: exact_ratio(TINY, "macs", {**kept, name: n + 1}) - ratio for name, n in kept.items()
    }
    for goal, pushes in ((ratio * 1.01, False), (ratio * 0.99, True)):
        rule = mask_rules.hinge(
            TINY, "macs", goal, learning_rate=0.1, strength=3.0, weight_decay=0.01
        )
        state = rule.init(logits)
        first, state = quick_jit(rule.update)(gradients, state, logits)
        second, _ = quick_jit(rule.update)(gradients, state, logits)
        for name, m in logits.items():
            slope = 0.5 * (1 - np.tanh(np.asarray(m, np.float64)) ** 2)
            push = 3.0 * marginal_costs[name] * slope if pushes else 0.0
            step = 2 * gradients[name] + push + 0.01 * m
            np.testing.assert_allclose(first[name], -0.1 * step, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(second[name], -0.1 * 1.9 * step, rtol=1e-4, atol=1e-6)


def test_hinge_pushes_only_above_the_budget():
    logits = random_masks(TINY, "channel", 2)
    ratio = exact_ratio(TINY, "macs", kept_units(logits))
    zero = jax.tree.map(jnp.zeros_like, logits)
    for goal, pushes in ((1.0, False), (ratio * 1.001, False), (ratio * 0.999, True)):
        rule = mask_rules.hinge(TINY, "macs", goal, learning_rate=0.1, weight_decay=0.0)
        updates, _ = quick_jit(rule.update)(zero, rule.init(logits), logits)
        for values in updates.values():
            assert bool((values < 0).all()) if pushes else not values.any()
