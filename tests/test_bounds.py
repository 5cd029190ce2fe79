"""Bounds round uniform pruning: held on the way down and at the end, beside budget and floors."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from budget_nets import KINDS, LARGE, SMALL, assert_floors, random_scores
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import kept_units, quick_jit

from irp_jax.pruning import budget, cost, masks, uniform
from irp_jax.pruning.bounds import around

SPREAD = 2.0


@functools.cache
def solver(kind):
    bounds = around(LARGE, "channel", kind, SPREAD)

    @quick_jit
    def solve(score, goal):
        ratio = functools.partial(cost.ratio, LARGE, kind)
        return budget.solve(score, bounds(goal), ratio, goal)[1], bounds(goal)

    return solve


@pytest.mark.parametrize("kind", KINDS)
@given(st.sampled_from([0.1, 0.16, 0.3, 0.7]), st.integers(0, 10**6))
def test_no_group_strays_from_the_uniform_share(kind, goal, seed):
    # One group's units are all worth a lot, another's nothing: without bounds both would be whole
    # and nearly empty.
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
def test_what_is_kept_in_the_end_is_within_a_factor_of_what_uniform_pruning_keeps(kind, goal):
    limit = int(goal * cost.total(LARGE).of(kind))
    even = uniform.keep_counts(LARGE, "channel", kind, limit)
    logits = random_scores(LARGE, "channel", 3)
    logits = {name: logits[name] * (i % 3 - 1) for i, name in enumerate(logits)}  # far from even
    kept = kept_units(budget.project(LARGE, logits, "channel", kind, limit, spread=SPREAD))
    assert 0.97 * limit <= cost.total(LARGE, kept).of(kind) <= limit
    assert_floors(LARGE, "channel", kept)
    for name, count in kept.items():
        # A channel more or less: counts of uniform pruning are rounded.
        assert (even[name] - 1) / SPREAD - 1 <= count <= SPREAD * (even[name] + 1)


def test_a_spread_of_one_is_uniform_pruning():
    limit = int(0.3 * cost.total(LARGE).params)
    logits = random_scores(LARGE, "channel", 1)
    kept = kept_units(budget.project(LARGE, logits, "channel", "params", limit, spread=1.0))
    even = uniform.keep_counts(LARGE, "channel", "params", limit)
    assert all(abs(kept[name] - even[name]) <= 1 for name in kept)


def test_floors_hold_where_the_uniform_share_is_below_them():
    least = masks.min_keep(SMALL, "channel")
    limit = cost.total(SMALL, least).macs
    logits = random_scores(SMALL, "channel", 0)
    kept = kept_units(budget.project(SMALL, logits, "channel", "macs", limit, spread=SPREAD))
    assert kept == least
