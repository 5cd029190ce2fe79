"""Learning masks under a budget: two rules behind one interface, each an optax transformation.

A rule receives the cross-entropy gradient of the mask logits and returns their update. It knows the
network's cost itself. `lagrangian` is the default, `hinge` the published rule.

Why the published hinge loss is not the default. A batch norm follows each convolution, so scaling a
whole kernel changes nothing, and the first-order gradients of the channels that a layer reads sum
to zero. They rank channels within a group and say nothing about the group. The hardware loss pushes
all channels of a group alike. Nothing counters it, so whole groups are pruned together. The
importance of a unit beside units of other groups shows only to second order.
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
"""Logits stay within [-LIMIT, LIMIT]; beyond it the soft mask is 0 or 1 to float32 precision."""

HAIR = 1e-4
"""A logit's least distance from zero after an update, far above the rounding error at LIMIT."""


def sparsity_schedule(budget: float, start: int, stop: int) -> optax.Schedule:
    """Target cost ratio over steps: 1 until `start`, then a cubic decrease to `budget` at `stop`.

    Steep at first, when many units are superfluous, and gentle near the end (Zhu & Gupta 2017,
    equation 1).
    """

    def target(step):
        left = 1.0 - jnp.clip((step - start) / max(1, stop - start), 0.0, 1.0)
        return budget + (1.0 - budget) * left**3

    return target


class LagrangianState(NamedTuple):
    """State of `lagrangian`.

    Attributes:
        step: () int32, updates made.
        importance: like the masks, running mean of the squared gate gradient.
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

    Minimising the loss L under a budget has the Lagrangian L + lambda * cost. Setting a unit's gate
    g to zero changes the loss by about half the curvature. The squared gradient estimates that
    (Theis et al. 2018, section 2; Molchanov et al. 2019, equation 8). It saves lambda times the
    unit's marginal cost. So with importance v = mean((dL/dg)^2) and c = dcost/dg the unit stays if
    v > lambda c, and the logit is

        M = 0.5 log(v / (lambda c)),   soft mask = v / (v + lambda c).

    The multiplier lambda is neither tuned nor integrated. Each step finds it by bisection, so that
    the cost of the kept units equals the target. Hence the cost follows the target without lag or
    rebound, and a unit whose importance grows returns. Bounds hold for every lambda.

    Args:
        graph: of the dense network.
        granularity: what a unit is.
        kind: what the budget counts.
        target: step -> cost ratio to meet; at 1 and above nothing is pruned.
        spread: how far the share kept of a group may be from the uniform one: see `bounds.around`.
        decay: of the running mean of the squared gradients.
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
            # Even where a bound moves the threshold, so that logits of all masks compare.
            above = score - common
            # Off zero, or adding the update to the old logit could round a kept unit away, and with
            # it the minimum of its mask.
            kept = score > threshold
            clear = jnp.where(kept, jnp.maximum(above, HAIR), jnp.minimum(above, -HAIR))
            return jnp.where(goal < 1.0, jnp.clip(clear, -LIMIT, LIMIT) - logits, 0.0)

        updates = jax.tree.map(move, score, thresholds, logits)
        return updates, LagrangianState(state.step + 1, importance)

    return optax.GradientTransformation(init, update)


def solve(
    score: Masks, bounds: Bounds, ratio: Callable[[dict], jax.Array], goal: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The scores above which units are kept.

    Args:
        score: mask name -> score of each unit, any shape.
        bounds: how few and how many units of each mask stay.
        ratio: kept units by mask name -> cost ratio, increasing in each.
        goal: ratio to meet.

    Returns:
        The threshold for all, the lowest at which the ratio is at most `goal`; and mask name -> its
        own, which differs where the mask would keep too few or too many.
    """

    def count(thresholds):
        return {name: (s > thresholds[name]).sum().astype(jnp.float32) for name, s in score.items()}

    low = {name: s.min() - 1.0 for name, s in score.items()}
    high = {name: s.max() + 1.0 for name, s in score.items()}

    def bisected(units: dict) -> tuple[dict, dict]:
        """Thresholds just below and above which as many units are kept, or more."""

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
        # Of units that score alike a ceiling may leave too few: the floor has the last word.
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
    """The published rule: two optimisers on the logits, their steps on a batch taken as one.

    The first descends the cross-entropy, the second the cross-entropy plus `strength` times the
    hinge max(ratio - budget, 0) (Vemparala et al. 2021, section 3).

    Args:
        graph: of the dense network.
        kind: what the budget counts.
        budget: cost ratio below which the hinge is zero.
        learning_rate: of both optimisers.
        strength: the paper's constant b, whose value it does not give.
        weight_decay: on the logits.
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


def project(
    graph: ChannelGraph,
    logits: Masks,
    granularity: Granularity,
    kind: cost.Kind,
    limit: int,
    *,
    spread: float = 0.0,
) -> dict[str, np.ndarray]:
    """The best units that fit: logits that are +1 for kept and -1 for pruned units.

    The least of each mask come first, then units from the highest logit down, each kept if it still
    fits and its mask has not its most.

    Args:
        graph: of the dense network.
        logits: learned masks.
        granularity: what a unit is.
        kind: what the budget counts.
        limit: the budget in MACs or parameters.
        spread: see `bounds.around`.

    Returns:
        Masks whose exact cost is at most `limit`, by less than the cheapest pruned unit's cost, of
        masks that have not their most.
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
        # A weight's cost does not depend on the other weights, so many are kept at once, up to one
        # that does not fit; weight by weight would take minutes for millions.
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
