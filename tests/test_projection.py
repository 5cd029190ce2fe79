"""Projection meets the budget from below, keeps the highest logits, and empties no layer."""

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
    random_scores,
    with_one_more,
)
from hypothesis import given
from hypothesis import strategies as st
from pruning_nets import kept_units

from irp_jax.pruning import cost, mask_rules, masks


@given(
    st.sampled_from([LARGE, SMALL]),
    st.sampled_from(GRANULARITIES),
    st.sampled_from(KINDS),
    st.sampled_from([0.04, 0.1, 0.16, 0.3, 0.5, 0.7]),
    st.integers(0, 10**6),
)
def test_projection_meets_the_budget_from_below(dense, granularity, kind, goal, seed):
    logits = random_scores(dense, granularity, seed)
    limit = int(goal * getattr(cost.total(dense), kind))
    found = mask_rules.best_within(dense, logits, granularity, kind, limit)
    assert {name: m.shape for name, m in found.items()} == {n: m.shape for n, m in logits.items()}
    assert all(set(np.unique(m)) <= {-1.0, 1.0} for m in found.values())
    kept = kept_units(found)
    assert_minimum(dense, granularity, kept)
    spent = getattr(cost.total(dense, kept), kind)
    assert 0.97 * limit <= spent <= limit
    for more in with_one_more(kept, dense, granularity):
        assert getattr(cost.total(dense, more), kind) > limit
    for name, values in logits.items():
        # All units of a mask cost the same, so those with the highest logits are kept.
        on, off = values[found[name] > 0], values[found[name] < 0]
        assert not off.size or on.min() >= off.max()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_projection_prefers_the_higher_logit(granularity):
    """Kept units are above one threshold, except for minimum keep counts and the last few."""
    logits = random_scores(SMALL, granularity, 0)
    limit = int(0.3 * cost.total(SMALL).macs)
    found = mask_rules.best_within(SMALL, logits, granularity, "macs", limit)
    least = masks.min_keep(SMALL, granularity)
    free = [name for name in logits if (found[name] > 0).sum() > least[name]]
    lowest_kept = np.concatenate([logits[n][found[n] > 0] for n in free])
    highest_gone = np.concatenate([logits[n][found[n] < 0] for n in logits])
    threshold = np.sort(highest_gone)[-1]
    assert (lowest_kept < threshold).mean() < 0.05


def test_projection_depends_on_nothing_but_the_logits():
    for granularity in GRANULARITIES:
        logits = random_scores(SMALL, granularity, 3)
        ties = {name: np.round(values) for name, values in logits.items()}
        limit = int(0.2 * cost.total(SMALL).macs)
        shuffled = {name: jnp.asarray(ties[name]) for name in sorted(ties)[::-1]}
        first, again = (
            mask_rules.best_within(SMALL, logits, granularity, "macs", limit)
            for logits in (ties, shuffled)
        )
        assert set(first) == set(again)
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_projection_onto_all_keeps_all_and_below_the_least_keeps_the_minimum(granularity):
    logits = random_scores(TINY, granularity, 0)
    dense, least = cost.total(TINY), cost.total(TINY, masks.min_keep(TINY, granularity))
    whole = mask_rules.best_within(TINY, logits, granularity, "macs", dense.macs)
    assert kept_units(whole) == masks.units(TINY, granularity)
    for limit in (0, least.macs):
        small = mask_rules.best_within(TINY, logits, granularity, "macs", limit)
        kept = kept_units(small)
        if limit == 0:
            assert kept == masks.min_keep(TINY, granularity)
        assert cost.total(TINY, kept).macs == least.macs
