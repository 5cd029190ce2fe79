"""Bounds around uniform pruning hold during the schedule and at the end, as do all minima."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from budget_nets import KINDS, LARGE, SMALL, assert_minimum, random_scores
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import kept_units, quick_jit

from irp_jax.pruning import cost, mask_rules, masks, uniform
from irp_jax.pruning.bounds import around

SPREAD = 2.0


@functools.cache
def solver(kind):
    bounds = around(LARGE, "channel", kind, SPREAD)

    @quick_jit
    def solve(score, goal):
        ratio = functools.partial(cost.ratio, LARGE, kind)
        return mask_rules.solve(score, bounds(goal), ratio, goal)[1], bounds(goal)

    return solve


@pytest.mark.parametrize("kind", KINDS)
@given(st.sampled_from([0.1, 0.16, 0.3, 0.7]), st.integers(0, 10**6))
def test_each_group_stays_near_the_uniform_share(kind, goal, seed):
    # All units of one group are important, those of another are not. Without bounds one group would
    # be kept whole and the other pruned to its minimum.
    score = {name: np.asarray(s) for name, s in random_scores(LARGE, "channel", seed).items()}
    first, second, *_ = score
    score |= {first: score[first] + 100, second: score[second] - 100}
    thresholds, bounds = solver(kind)(score, jnp.float32(goal))
    kept = {name: int((s > thresholds[name]).sum()) for name, s in score.items()}
    assert all(bounds.least[name] <= count <= bounds.most[name] for name, count in kept.items())
    assert kept[first] == bounds.most[first] and kept[second] == bounds.least[second]
    assert float(cost.ratio(LARGE, kind, kept)) <= goal + 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("goal", [0.06, 0.16, 0.5])
def test_final_keep_counts_are_within_a_factor_of_uniform_pruning(kind, goal):
    limit = int(goal * cost.total(LARGE).of(kind))
    even = uniform.keep_counts(LARGE, "channel", kind, limit)
    logits = random_scores(LARGE, "channel", 3)
    logits = {name: logits[name] * (i % 3 - 1) for i, name in enumerate(logits)}  # far from uniform
    kept = kept_units(mask_rules.best_within(LARGE, logits, "channel", kind, limit, spread=SPREAD))
    assert 0.97 * limit <= cost.total(LARGE, kept).of(kind) <= limit
    assert_minimum(LARGE, "channel", kept)
    for name, count in kept.items():
        # One channel of tolerance, because the counts of uniform pruning are rounded.
        assert (even[name] - 1) / SPREAD - 1 <= count <= SPREAD * (even[name] + 1)


def test_a_spread_of_one_is_uniform_pruning():
    limit = int(0.3 * cost.total(LARGE).params)
    logits = random_scores(LARGE, "channel", 1)
    kept = kept_units(mask_rules.best_within(LARGE, logits, "channel", "params", limit, spread=1.0))
    even = uniform.keep_counts(LARGE, "channel", "params", limit)
    assert all(abs(kept[name] - even[name]) <= 1 for name in kept)


def test_minimum_keep_counts_hold_where_the_uniform_share_is_below_them():
    least = masks.min_keep(SMALL, "channel")
    limit = cost.total(SMALL, least).macs
    logits = random_scores(SMALL, "channel", 0)
    kept = kept_units(
        mask_rules.best_within(SMALL, logits, "channel", "macs", limit, spread=SPREAD)
    )
    assert kept == least
