"""Climbing a loss on a batch as a whole, as attacks inside a training step do.

A network in training mode normalises over its batch: image by image under vmap it would be a
different network. So it sees the batch as a whole; starts, steps and projections stay each image's
own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from irp_jax import draws
from irp_jax.attacks.attack import finite
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy
from irp_jax.attacks.threat import Threat, clip_to_box, project, random_start, uphill


def starts(threat: Threat, key: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
    """Points drawn uniformly from the ball around each image, clipped to the pixel box.

    Args:
        threat: the ball.
        key: image i draws from `fold_in(key, i)`.
        images: (N, H, W, C) float32 in [0, 1].
        scale: of the ball that is drawn from, in units of epsilon.

    Returns:
        (N, H, W, C) float32 in [0, 1].
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draws.steady(key), jnp.arange(images.shape[0]))
    return jax.vmap(random_start, (None, 0, 0, None))(threat, keys, images, scale)


def input_gradient(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, loss: Loss = cross_entropy
) -> jax.Array:
    """Gradient of the summed loss in the images, (N, H, W, C), zero where it is not finite.

    Through the statistics of the batch an image's gradient depends a little on the other images.
    """

    def total(images: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(loss)(logits_fn(images), labels))

    return finite(jax.grad(total)(images))


def step(
    threat: Threat,
    current: jax.Array,
    images: jax.Array | None,
    gradient: jax.Array,
    length: float | jax.Array,
) -> jax.Array:
    """One step of steepest ascent, brought back into the ball and the pixel box.

    Args:
        threat: the ball.
        current: (N, H, W, C), where the step starts.
        images: (N, H, W, C), the centres of the balls; None for a step that may leave its ball.
        gradient: (N, H, W, C), of what is climbed; where it is not finite no pixel moves by it.
        length: of the step, in units of epsilon.
    """
    slopes, far = finite(gradient), length * threat.epsilon
    moves = jax.vmap(uphill, (None, 0, 0, None))(threat, current, slopes, far)
    ahead = current + moves
    if images is None:
        return clip_to_box(ahead)
    return jax.vmap(project, (None, 0, 0))(threat, ahead, images)


def ascend(
    gradient: Callable[[jax.Array], jax.Array],
    threat: Threat,
    start: jax.Array,
    images: jax.Array,
    *,
    steps: int,
    length: float,
) -> jax.Array:
    """Many steps, each along the gradient where it stands; see `step` for the arguments.

    Args:
        gradient: (N, H, W, C) images -> gradient of what is climbed, same shape.
    """

    def body(_: jax.Array, current: jax.Array) -> jax.Array:
        return step(threat, current, images, gradient(current), length)

    return jax.lax.fori_loop(0, steps, body, start)
