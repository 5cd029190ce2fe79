"""Two rules that learn masks under a budget, each an optax transformation.

A rule receives the cross-entropy gradient of the mask logits and returns their update. It computes
the network's cost itself. `lagrangian` is the default, `hinge` is the published rule.

The published hinge loss is not the default, since it can prune whole groups. A batch norm follows
each convolution, so scaling a whole kernel changes nothing. Hence the first-order gradients of the
channels that a layer reads sum to zero. They rank channels within a group, but do not compare
groups. The hardware loss pushes all channels of a group equally. No other gradient opposes it, so
whole groups are pruned at once. Only second-order terms show the importance of a unit relative to
units of other groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks
from irp_jax.pruning.bounds import Bounds, around
from irp_jax.pruning.masks import Granularity, Masks

LIMIT = 8.0
"""Logits stay within [-LIMIT, LIMIT]. Outside, the soft mask is 0 or 1 in float32."""

HAIR = 1e-4
"""Least absolute value of a logit after an update, far above the rounding error at LIMIT."""


def sparsity_schedule(budget: float, start: int, stop: int) -> optax.Schedule:
    """Returns step -> target cost ratio: 1 until `start`, then a cubic decrease to `budget`.

    The budget is reached at `stop`. The decrease is steep at first, when many units are redundant,
    and slow near the end (Zhu & Gupta 2017, equation 1).
    """

    def target(step):
        left = 1.0 - jnp.clip((step - start) / max(1, stop - start), 0.0, 1.0)
        return budget + (1.0 - budget) * left**3

    return target


class LagrangianState(NamedTuple):
    """State of `lagrangian`.

    Attributes:
        step: () int32, number of updates.
        importance: running mean of the squared gate gradient, with the shapes of the masks.
    """

    step: jax.Array
    importance: Masks


def lagrangian(
    graph: ChannelGraph,
    granularity: Granularity,
    kind: cost.Kind,
    target: optax.Schedule,
    *,
    spread: float = 0.0,
    decay: float = 0.98,
) -> optax.GradientTransformation:
    """Keeps a unit while its importance exceeds the multiplier times its marginal cost.

    The loss L under a budget has the Lagrangian L + lambda * cost. Setting a unit's gate g to zero
    changes the loss by about half the curvature, which the squared gradient estimates (Theis et al.
    2018, section 2; Molchanov et al. 2019, equation 8). It saves lambda times the unit's marginal
    cost. Let the importance be v = mean((dL/dg)^2), and c = dcost/dg. Then the unit is kept if
    v > lambda c, and its logit is

        M = 0.5 log(v / (lambda c)),   soft mask = v / (v + lambda c).

    The multiplier lambda is neither tuned nor integrated. Each step finds it by bisection, so that
    the cost of the kept units equals the target. So the cost follows the target without lag or
    overshoot. A pruned unit is restored if its importance grows. Bounds hold for every lambda.

    Args:
        graph: the graph of the dense network.
        granularity: what a unit is.
        kind: what the budget counts.
        target: step -> target cost ratio; at 1 and above nothing is pruned.
        spread: how far a group's kept share may be from the uniform share: see `bounds.around`.
        decay: decay rate of the running mean of the squared gradients.
    """
    bounds = around(graph, granularity, kind, spread)

    def ratio(gates: Masks) -> jax.Array:
        return cost.ratio(graph, kind, masks.keep_counts(gates))

    def init(logits: Masks) -> LagrangianState:
        return LagrangianState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, logits))

    def update(
        gradients: Masks, state: LagrangianState, logits: Masks | None = None
    ) -> tuple[Masks, LagrangianState]:
        assert logits is not None
        goal = target(state.step)
        importance = jax.tree.map(
            lambda v, g, m: decay * v + (1 - decay) * jnp.square(g / masks.slope(m)),
            state.importance,
            gradients,
            logits,
        )
        marginal_costs = jax.grad(ratio)(
            {name: (m > 0).astype(m.dtype) for name, m in logits.items()}
        )
        score = jax.tree.map(
            lambda v, c: 0.5 * (jnp.log(v + 1e-30) - jnp.log(c)), importance, marginal_costs
        )
        common, thresholds = solve(
            score, bounds(goal), lambda counts: cost.ratio(graph, kind, counts), goal
        )

        def move(score: jax.Array, threshold: jax.Array, logits: jax.Array) -> jax.Array:
            # Relative to the common threshold, even if a bound applies, so that the logits of all
            # masks are comparable.
            above = score - common
            # Away from zero. Otherwise the rounding error of adding the update to the old logit
            # could prune a kept unit, and the mask could fall below its minimum.
            kept = score > threshold
            clear = jnp.where(kept, jnp.maximum(above, HAIR), jnp.minimum(above, -HAIR))
            return jnp.where(goal < 1.0, jnp.clip(clear, -LIMIT, LIMIT) - logits, 0.0)

        updates = jax.tree.map(move, score, thresholds, logits)
        return updates, LagrangianState(state.step + 1, importance)

    return optax.GradientTransformation(init, update)


def solve(
    score: Masks, bounds: Bounds, ratio: Callable[[dict], jax.Array], goal: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the thresholds on the scores: units with higher scores are kept.

    Args:
        score: mask name -> score of each unit, any shape.
        bounds: fewest and most units of each mask to keep.
        ratio: (mask name -> number of kept units) -> cost ratio, increasing in each number.
        goal: target cost ratio.

    Returns:
        The common threshold, the lowest at which the ratio is at most `goal`; and mask name -> the
        mask's threshold, which differs if the mask would keep too few or too many units.
    """

    def count(thresholds):
        return {name: (s > thresholds[name]).sum().astype(jnp.float32) for name, s in score.items()}

    low = {name: s.min() - 1.0 for name, s in score.items()}
    high = {name: s.max() + 1.0 for name, s in score.items()}

    def bisected(units: dict) -> tuple[dict, dict]:
        """Returns thresholds just below and above the highest that keeps at least `units`."""

        def narrow(_, ends):
            low, high = ends
            middle = jax.tree.map(lambda a, b: 0.5 * (a + b), low, high)
            enough = {name: n >= units[name] for name, n in count(middle).items()}
            return (
                {name: jnp.where(enough[name], middle[name], low[name]) for name in low},
                {name: jnp.where(enough[name], high[name], middle[name]) for name in high},
            )

        return jax.lax.fori_loop(0, 24, narrow, (low, high))

    floor, _ = bisected(bounds.least)
    _, above = bisected({name: most + 1 for name, most in bounds.most.items()})
    ceiling = {n: jnp.where(bounds.most[n] < s.size, above[n], -jnp.inf) for n, s in score.items()}

    def capped(threshold):
        # Among units of equal score the ceiling may leave too few, so the floor takes precedence.
        return {n: jnp.minimum(jnp.maximum(threshold, ceiling[n]), floor[n]) for n in floor}

    def narrow(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        fits = ratio(count(capped(middle))) <= goal
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    lowest = jnp.stack(list(low.values())).min()
    highest = jnp.stack(list(high.values())).max()
    _, threshold = jax.lax.fori_loop(0, 24, narrow, (lowest, highest))
    return threshold, capped(threshold)


def hinge(
    graph: ChannelGraph,
    kind: cost.Kind,
    budget: float,
    learning_rate: optax.ScalarOrSchedule,
    *,
    strength: float = 1.0,
    weight_decay: float = 5e-4,
) -> optax.GradientTransformation:
    """Returns the published rule: two optimisers on the logits, combined into one step per batch.

    The first minimises the cross-entropy. The second minimises the cross-entropy plus `strength`
    times the hinge max(ratio - budget, 0) (Vemparala et al. 2021, section 3).

    Args:
        graph: the graph of the dense network.
        kind: what the budget counts.
        budget: cost ratio below which the hinge is zero.
        learning_rate: learning rate of both optimisers.
        strength: the paper's constant b, whose value the paper does not give.
        weight_decay: weight decay on the logits.
    """

    def hardware_loss(logits: Masks) -> jax.Array:
        kept = masks.keep_counts(masks.gates(logits))
        return jnp.maximum(cost.ratio(graph, kind, kept) - budget, 0.0)

    def both(gradients: Masks, logits: Masks) -> Masks:
        push = jax.grad(hardware_loss)(logits)
        return jax.tree.map(lambda g, p: 2.0 * g + strength * p, gradients, push)

    return optax.chain(
        optax.stateless(lambda updates, params: both(updates, params)),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=0.9),
    )


def best_within(
    graph: ChannelGraph,
    logits: Masks,
    granularity: Granularity,
    kind: cost.Kind,
    limit: int,
    *,
    spread: float = 0.0,
) -> dict[str, np.ndarray]:
    """Selects the units with the highest logits within a budget.

    First each mask keeps the units of its lower bound. Then all other units are visited in order of
    decreasing logits. A unit is kept if the budget and its mask's upper bound allow it.

    Args:
        graph: the graph of the dense network.
        logits: the learned masks.
        granularity: what a unit is.
        kind: what the budget counts.
        limit: the budget in MACs, parameters or nanoseconds.
        spread: see `bounds.around`.

    Returns:
        Masks with logits +1 for kept and -1 for pruned units. Their exact cost is at most `limit`.
        The rest of the budget is less than the cost of any pruned unit whose mask is below its
        upper bound.
    """
    dense = cost.total(graph).of(kind)
    bounds = jax.device_get(around(graph, granularity, kind, spread)(limit / dense))
    least = {name: int(units) for name, units in bounds.least.items()}
    names = list(least)
    values = {name: np.asarray(logits[name]).ravel() for name in names}
    sizes = [values[name].size for name in names]
    first = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
    owner = np.repeat(np.arange(len(names)), sizes)

    keep = np.zeros(owner.size, bool)
    for name, value in values.items():
        keep[first[name] + np.argsort(-value, kind="stable")[: least[name]]] = True
    rest = np.flatnonzero(~keep)
    order = rest[np.argsort(-np.concatenate(list(values.values()))[rest], kind="stable")]

    def spent(kept: dict[str, int]) -> int:
        return cost.total(graph, kept).of(kind)

    if granularity == "weight":
        # A weight's cost does not depend on the other weights. So each pass keeps all weights up to
        # the first that does not fit. One weight at a time would take minutes for millions.
        left = limit - spent(least)
        each = np.array([spent({**least, name: least[name] + 1}) - spent(least) for name in names])
        while order.size:
            order = order[each[owner[order]] <= left]
            total = np.cumsum(each[owner[order]])
            run = np.searchsorted(total, left, side="right")
            keep[order[:run]] = True
            left -= total[run - 1] if run else 0
            order = order[run:]
    else:
        kept = dict(least)
        for unit in order:
            name = names[owner[unit]]
            more = {**kept, name: kept[name] + 1}
            if more[name] <= bounds.most[name] and spent(more) <= limit:
                keep[unit], kept = True, more
    return {
        name: np.where(keep[first[name] :][: values[name].size], 1.0, -1.0)
        .astype(np.float32)
        .reshape(logits[name].shape)
        for name in names
    }
