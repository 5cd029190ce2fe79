"""The threat model: a ball around the natural image, inside the pixel box.

An attack consists of a loss, a start, a step and a projection. The last three depend on the ball
only and are defined here, as pure functions of **one** image. So an attack is written once for all
norms and is batched with `jax.vmap`. Images and `epsilon` are in pixel units of [0, 1].
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from irp_jax.errors import UserError, unknown

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Threat:
    """The set of allowed images: ||x_adv - x|| <= epsilon and x_adv in [0, 1].

    A pytree whose only leaf is the radius, so one compiled attack serves every radius.

    Attributes:
        norm: "linf" (largest change of a pixel), "l2" (Euclidean length of the change) or "l1"
            (sum of the changes of all pixels).
        epsilon: radius in pixel units of [0, 1]; 8/255 for the usual L-inf threat on CIFAR-10.

    Raises:
        UserError: the norm is unknown, or the radius is not a positive finite number, or an L-inf
            radius is above 1, the width of the pixel box.
    """

    norm: Norm = dataclasses.field(metadata={"static": True})
    epsilon: float | jax.Array

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        # A traced radius has no value; it was checked before the trace.
        if isinstance(self.epsilon, int | float):
            check_epsilon(self.norm, float(self.epsilon))


def check_epsilon(norm: Norm, epsilon: float) -> None:
    """Raises UserError unless `epsilon` is a valid radius for `norm`."""
    if norm == "linf" and 1 < epsilon < math.inf:
        raise UserError(
            f"epsilon must be in (0, 1], got {epsilon:g}: did you mean {epsilon:g}/255?"
        )
    if not 0 < epsilon < math.inf:
        raise UserError(f"epsilon must be a positive number, got {epsilon:g}: for instance 8/255")


def linf(epsilon: float | jax.Array) -> Threat:
    """Returns the L-inf ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="linf", epsilon=epsilon)


def l2(epsilon: float | jax.Array) -> Threat:
    """Returns the L2 ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="l2", epsilon=epsilon)


def l1(epsilon: float | jax.Array) -> Threat:
    """Returns the L1 ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="l1", epsilon=epsilon)


def distance(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """Returns the distance in the threat's norm, a scalar of the image's dtype."""
    change = perturbed - natural
    match threat.norm:
        case "linf":
            return jnp.max(jnp.abs(change))
        case "l2":
            return jnp.sqrt(jnp.sum(jnp.square(change)))
        case "l1":
            return jnp.sum(jnp.abs(change))


def clip_to_box(image: jax.Array) -> jax.Array:
    """Returns the nearest image with every pixel in [0, 1]."""
    return jnp.clip(image, 0.0, 1.0)


def project(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """Projects an image into the ball around the natural one and into the pixel box.

    Args:
        threat: the ball.
        perturbed: one image of any shape.
        natural: the natural image, same shape and dtype, in [0, 1].

    Returns:
        An image of the same shape and dtype, in [0, 1], no further than epsilon from `natural` (to
        the rounding of the dtype), and unchanged if it was allowed already. For L-inf and L1 it is
        the nearest allowed image. For L2 the image is projected into the ball, then into the box.
        `natural` lies in the box, so the box moves no pixel away from it, and both bounds hold.
    """
    match threat.norm:
        case "linf":
            within = jnp.clip(perturbed, natural - threat.epsilon, natural + threat.epsilon)
        case "l2":
            change = perturbed - natural
            length = distance(threat, perturbed, natural)
            # Scaling only outside the ball leaves an allowed image unchanged, bit for bit.
            shrunk = natural + change * (threat.epsilon / jnp.maximum(length, threat.epsilon))
            within = jnp.where(length > threat.epsilon, shrunk, perturbed)
        case "l1":
            within = _project_l1(threat, perturbed, natural)
    return clip_to_box(within)


def _project_l1(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """Returns the image nearest to `perturbed` in both the L1 ball and the box.

    One level is subtracted from the size of every change. The rest is clipped to the room that the
    pixel has in the box. The sum of the rest decreases with the level, so bisection finds the
    level. On a few thousand pixels bisection is faster than sorting. Its error in the length is
    below the resolution of the dtype.

    References:
        Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
        2021, proposition 2.1.
    """
    change = perturbed - natural
    size = jnp.abs(change)
    room = jnp.where(change > 0, 1.0 - natural, natural)

    def left(level: jax.Array) -> jax.Array:
        return jnp.clip(size - level, 0.0, room)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        outside = jnp.sum(left(middle)) > threat.epsilon
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    largest = jnp.max(size)
    _, level = jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(largest), largest))
    in_box = clip_to_box(perturbed)
    outside = distance(threat, in_box, natural) > threat.epsilon
    return jnp.where(outside, natural + jnp.sign(change) * left(level), in_box)


def random_start(
    threat: Threat, key: jax.Array, natural: jax.Array, scale: float | jax.Array = 1.0
) -> jax.Array:
    """Draws an image uniformly from the scaled ball, then clips it to the pixel box.

    Args:
        threat: the ball.
        key: a PRNG key for this image only.
        natural: one image of any shape, in [0, 1].
        scale: radius of the scaled ball in units of epsilon; 0 returns `natural` itself.

    Returns:
        An image of the same shape and dtype, in [0, 1], no further than scale * epsilon from
        `natural`.
    """
    match threat.norm:
        case "linf":
            noise = jax.random.uniform(key, natural.shape, natural.dtype, -1.0, 1.0)
        case "l2":
            # The direction is uniform. The radius is the d-th root of a uniform number, because the
            # volume of a ball of dimension d grows with the d-th power of its radius.
            direction_key, radius_key = jax.random.split(key)
            normal = jax.random.normal(direction_key, natural.shape, natural.dtype)
            radius = jax.random.uniform(radius_key, (), natural.dtype) ** (
                1.0 / max(natural.size, 1)
            )
            noise = steepest(threat, normal) * radius
        case "l1":
            # As for L2. The Laplace density depends only on the L1 length.
            direction_key, radius_key = jax.random.split(key)
            laplace = jax.random.laplace(direction_key, natural.shape, natural.dtype)
            radius = jax.random.uniform(radius_key, (), natural.dtype) ** (
                1.0 / max(natural.size, 1)
            )
            noise = laplace / jnp.sum(jnp.abs(laplace)) * radius
    return clip_to_box(natural + scale * threat.epsilon * noise)


def steepest(threat: Threat, gradient: jax.Array) -> jax.Array:
    """Returns the direction of length one that raises the loss fastest to first order.

    Args:
        threat: its norm determines how length is measured.
        gradient: d loss / d image, one image of any shape.

    Returns:
        Same shape and dtype: the sign for L-inf, the gradient over its length for L2, the sign at
        the largest entry only for L1; zero where the gradient is zero.
    """
    match threat.norm:
        case "linf":
            return jnp.sign(gradient)
        case "l2":
            # The gradient of a confident network may be as small as 1e-30. Its square is zero in
            # float32, so the gradient is first scaled to a largest entry of one.
            largest = jnp.max(jnp.abs(gradient))
            scaled = gradient / jnp.where(largest > 0, largest, 1.0)
            length = jnp.sqrt(jnp.sum(jnp.square(scaled)))
            return scaled / jnp.maximum(length, 1.0)
        case "l1":
            largest = jnp.argmax(jnp.abs(gradient))
            there = jnp.arange(gradient.size) == largest
            return jnp.where(there.reshape(gradient.shape), jnp.sign(gradient), 0.0)


def uphill(threat: Threat, image: jax.Array, gradient: jax.Array, length: Any) -> jax.Array:
    """Returns the move of a given length that raises the loss most to first order.

    For L-inf and L2 the move ignores the pixel box, and the projection enforces it. For L1 a move
    along one entry would leave the box, and the projection would undo it. So for L1 it is the best
    move within the box: the largest entries of the gradient each go to their bound until the length
    is used up (why the box matters for L1: Croce & Hein 2021, "Mind the box").

    Args:
        threat: its norm determines how length is measured.
        image: where the move starts, in [0, 1].
        gradient: d loss / d image there.
        length: of the move, in pixel units.

    Returns:
        The move to add to the image: same shape and dtype, no longer than `length`.
    """
    if threat.norm != "l1":
        return length * steepest(threat, gradient)
    slopes = gradient.ravel()
    pixels = image.ravel()
    room = jnp.where(slopes > 0, 1.0 - pixels, jnp.where(slopes < 0, pixels, 0.0))
    order = jnp.argsort(-jnp.abs(slopes))
    room = jnp.maximum(room[order], 0.0)
    left = length - (jnp.cumsum(room) - room)
    moves = jnp.zeros_like(slopes).at[order].set(jnp.clip(left, 0.0, room))
    return (moves * jnp.sign(slopes)).reshape(gradient.shape)
