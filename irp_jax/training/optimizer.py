"""One optimiser over {"weights", "masks"}: SGD on the weights, a budget rule on the masks."""

import optax


def partitioned(
    weights: optax.GradientTransformation, masks: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Updates the two halves of the parameter tree by transformations of their own.

    Args:
        weights: applied to params["weights"].
        masks: applied to params["masks"].
    """
    return optax.partition(
        {"weights": _on("weights", weights), "masks": _on("masks", masks)},
        {"weights": "weights", "masks": "masks"},
    )


def _on(half: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` applied to one half, so that it need not know of the other."""

    def init(params):
        return inner.init(params[half])

    def update(updates, state, params=None):
        new, state = inner.update(updates[half], state, None if params is None else params[half])
        return {**updates, half: new}, state

    return optax.GradientTransformation(init, update)


def one_cycle(peak: float, steps: int, warm_up: float = 0.4) -> optax.Schedule:
    """Learning rate 0 -> `peak` -> 0, linear, the peak after a fraction `warm_up` of the steps.

    The cyclic schedule of Wong, Rice & Kolter (2020, section 5).
    """
    turn = max(1, round(warm_up * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, turn),
            optax.linear_schedule(peak, 0.0, max(1, steps - turn)),
        ],
        [turn],
    )
