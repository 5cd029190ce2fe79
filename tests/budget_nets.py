"""Networks, scores and reference functions for the tests of budgets."""

import numpy as np

from irp_jax import models, traced
from irp_jax.pruning import cost, masks

GRANULARITIES: tuple[masks.Granularity, ...] = ("channel", "weight")
KINDS: tuple[cost.Kind, ...] = ("macs", "params")
LARGE = traced.named("resnet20", 1.0, (32, 32, 3), 10).graph
SMALL = traced.named("resnet20", 1.0, (8, 8, 1), 10).graph
TINY = traced.trace(models.ResNet((1, 1), (6, 8), 10), (8, 8, 1)).graph


def exact_ratio(graph, kind, kept):
    """Returns the fraction of the dense cost. The counts are integers until the final division."""
    return getattr(cost.total(graph, kept), kind) / getattr(cost.total(graph), kind)


def assert_minimum(graph, granularity, kept):
    """Checks that every mask keeps at least its minimum."""
    for name, least in masks.min_keep(graph, granularity).items():
        assert kept[name] >= least, name


def with_one_more(kept, graph, granularity):
    """Yields all keep counts with one more unit."""
    for name, size in masks.units(graph, granularity).items():
        if kept[name] < size:
            yield {**kept, name: kept[name] + 1}


def random_scores(graph, granularity, seed):
    """Returns random scores that differ between groups as much as within them."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0, 3) + rng.normal(0, 2, logits.shape)).astype(np.float32)
        for name, logits in masks.init(graph, granularity).items()
    }
