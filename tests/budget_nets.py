"""Networks, scores and hand counts for the tests of budgets."""

import numpy as np

from irp_jax import models
from irp_jax.pruning import cost, masks

REGULARITIES: tuple[masks.Regularity, ...] = ("channel", "weight")
KINDS: tuple[cost.Kind, ...] = ("macs", "params")
LARGE = models.describe(models.build("resnet20", 10), (32, 32, 3))
SMALL = models.describe(models.build("resnet20", 10), (8, 8, 1))
TINY = models.describe(models.resnet.ResNet((1, 1), (6, 8), 10), (8, 8, 1))


def exact_ratio(dense, kind, kept):
    """The share of the dense cost, in whole numbers until the last."""
    return getattr(cost.total(dense, kept), kind) / getattr(cost.total(dense), kind)


def assert_floors(dense, regularity, kept):
    """Every mask keeps what its layer needs."""
    for name, least in masks.floors(dense, regularity).items():
        assert kept[name] >= least, name


def with_one_more(kept, dense, regularity):
    """All ways to keep one unit more."""
    for name, size in masks.units(dense, regularity).items():
        if kept[name] < size:
            yield {**kept, name: kept[name] + 1}


def random_scores(dense, regularity, seed):
    """Scores whose groups differ as much as their units do."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0, 3) + rng.normal(0, 2, logits.shape)).astype(np.float32)
        for name, logits in masks.init(dense, regularity).items()
    }
