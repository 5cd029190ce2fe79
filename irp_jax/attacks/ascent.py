"""Gradient ascent on a whole batch, for attacks inside a training step.

A network in training mode normalises by the statistics of its batch. Under `vmap` over the images
it would be a different network, so it gets the batch as a whole. Starts, steps and projections are
computed for each image separately.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from irp_jax import prng
from irp_jax.attacks.attack import finite
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy
from irp_jax.attacks.threat import Threat, clip_to_box, project, random_start, uphill


def starts(threat: Threat, key: jax.Array, images: jax.Array, scale: float = 1.0) -> jax.Array:
    """Draws a point uniformly from the ball around each image and clips it to the pixel box.

    Args:
        threat: the ball.
        key: image i draws from `fold_in(key, i)`.
        images: (N, H, W, C) float32 in [0, 1].
        scale: radius of the ball that is drawn from, in units of epsilon.

    Returns:
        (N, H, W, C) float32 in [0, 1].
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.converted(key), jnp.arange(images.shape[0]))
    return jax.vmap(random_start, (None, 0, 0, None))(threat, keys, images, scale)


def input_gradient(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, loss: Loss = cross_entropy
) -> jax.Array:
    """Returns the gradient of the summed loss in the images, (N, H, W, C), zero where not finite.

    With batch statistics, the gradient of an image depends slightly on the other images.
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
    """Takes one step of steepest ascent and projects the result into the ball and the pixel box.

    Args:
        threat: the ball.
        current: (N, H, W, C), where the step starts.
        images: (N, H, W, C), the centres of the balls; None for a step that may leave its ball.
        gradient: (N, H, W, C), of the loss to increase. Values that are not finite count as zero.
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
    """Takes steps along the gradient at the current images; see `step` for the arguments.

    Args:
        gradient: (N, H, W, C) images -> gradient of the loss to increase, same shape.
    """

    def body(_: jax.Array, current: jax.Array) -> jax.Array:
        return step(threat, current, images, gradient(current), length)

    return jax.lax.fori_loop(0, steps, body, start)
