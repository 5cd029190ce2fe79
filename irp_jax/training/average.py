"""A moving average of the network over the steps of training, the one that is put to use."""

from typing import Any

import jax
import jax.numpy as jnp


def follow(average: Any, latest: Any, step: Any, decay: float) -> Any:
    """The exponential moving average after one more step (Polyak & Juditsky 1992; decay as usual).

    The batch statistics are averaged with the weights, not estimated anew. To first order in how
    far the weights move within the window, of 1 / (1 - decay) steps, the statistics of averaged
    weights are the average of the statistics, and the running statistics, themselves an average
    over ten steps, are used on that ground already. Estimating them would take a pass over
    adversarial images at every probe, and their attacks would need the statistics to begin with.

    Args:
        average: pytree of arrays, the average so far; None for none.
        latest: the same structure, as it is after the step.
        step: () int32, steps taken before this one.
        decay: in [0, 1). The first steps forget faster, (1 + step) / (10 + step), so that the
            average does not stay at where the network started.
    """
    if average is None:
        return None
    count = step.astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1.0 + count) / (10.0 + count))

    def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
        # What a network counts, steps for instance, is as it is now.
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        wide = keep * old.astype(jnp.float32) + (1.0 - keep) * new.astype(jnp.float32)
        return wide.astype(old.dtype)

    return jax.tree.map(averaged, average, latest)
