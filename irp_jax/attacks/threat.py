"""What the adversary may do: a ball around the natural image, inside the pixel box.

Every attack is loss x start x step x projection. The last three depend on the ball alone and live
here, each a pure function of **one** image, so an attack is written once for every norm and is
batched with `jax.vmap`. Images are in pixel units, [0, 1], and so is `epsilon`.
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
    """The set of images the adversary may show: ||x_adv - x|| <= epsilon and x_adv in [0, 1].

    A pytree whose only leaf is the radius, so one compiled attack serves every radius.

    Attributes:
        norm: "linf" (largest change of a pixel), "l2" (Euclidean length of the change) or "l1"
            (sum of the changes of all pixels).
        epsilon: radius in pixel units of [0, 1]; 8/255 for the usual L-inf threat on CIFAR-10.

    Raises:
        UserError: the norm is unknown, or the radius cannot be meant: not a positive finite
            number, or an L-inf radius above 1, which is wider than the pixel box.
    """

    norm: Norm = dataclasses.field(metadata={"static": True})
    epsilon: float | jax.Array

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        # Inside a trace the radius is not a number yet; it was checked when it still was one.
        if isinstance(self.epsilon, int | float):
            check_epsilon(self.norm, float(self.epsilon))


def check_epsilon(norm: Norm, epsilon: float) -> None:
    """Raises UserError unless `epsilon` is a radius that can be meant for `norm`."""
    if norm == "linf" and 1 < epsilon < math.inf:
        raise UserError(
            f"epsilon must be in (0, 1], got {epsilon:g}: did you mean {epsilon:g}/255?"
        )
    if not 0 < epsilon < math.inf:
        raise UserError(f"epsilon must be a positive number, got {epsilon:g}: for instance 8/255")


def linf(epsilon: float | jax.Array) -> Threat:
    """The L-inf ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="linf", epsilon=epsilon)


def l2(epsilon: float | jax.Array) -> Threat:
    """The L2 ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="l2", epsilon=epsilon)


def l1(epsilon: float | jax.Array) -> Threat:
    """The L1 ball of radius `epsilon`, in pixel units of [0, 1]."""
    return Threat(norm="l1", epsilon=epsilon)


def distance(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """How far `perturbed` is from `natural` in the threat's norm: a scalar of the image's dtype."""
    change = perturbed - natural
    match threat.norm:
        case "linf":
            return jnp.max(jnp.abs(change))
        case "l2":
            return jnp.sqrt(jnp.sum(jnp.square(change)))
        case "l1":
            return jnp.sum(jnp.abs(change))


def clip_to_box(image: jax.Array) -> jax.Array:
    """The nearest image with every pixel in [0, 1]."""
    return jnp.clip(image, 0.0, 1.0)


def project(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """Brings an image back into the ball around the natural one and into the pixel box.

    Args:
        threat: the ball.
        perturbed: one image of any shape.
        natural: the natural image, same shape and dtype, in [0, 1].

    Returns:
        An image of the same shape and dtype, in [0, 1], no further than epsilon from `natural` (to
        the rounding of the dtype), and unchanged if it was allowed already. For L-inf and L1 it is
        the nearest allowed image. For L2 the ball comes first and the box second: since `natural`
        lies in the box, the box moves no pixel away from it, so both bounds hold.
    """
    match threat.norm:
        case "linf":
            within = jnp.clip(perturbed, natural - threat.epsilon, natural + threat.epsilon)
        case "l2":
            change = perturbed - natural
            length = distance(threat, perturbed, natural)
            # Dividing only where the image is outside leaves one inside untouched, bit for bit.
            shrunk = natural + change * (threat.epsilon / jnp.maximum(length, threat.epsilon))
            within = jnp.where(length > threat.epsilon, shrunk, perturbed)
        case "l1":
            within = _project_l1(threat, perturbed, natural)
    return clip_to_box(within)


def _project_l1(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    """The image nearest to `perturbed` in both the L1 ball and the box.

    It takes one same level off the size of every change, and cuts what is left to the room that the
    pixel has in the box. What then remains in sum falls with the level, so bisection finds the
    level: on few thousand pixels it is quicker than to sort them, and the lengths it errs by are
    those that the dtype cannot tell apart.

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
    """An image drawn uniformly from the ball, widened by a factor, then clipped to the pixel box.

    Args:
        threat: the ball.
        key: a PRNG key of this image's own.
        natural: one image of any shape, in [0, 1].
        scale: radius of the start over epsilon; 0 returns `natural` itself.

    Returns:
        An image of the same shape and dtype, in [0, 1], no further than scale * epsilon from
        `natural`.
    """
    match threat.norm:
        case "linf":
            noise = jax.random.uniform(key, natural.shape, natural.dtype, -1.0, 1.0)
        case "l2":
            # A uniform direction, and the d-th root of a uniform number for the radius: a ball of
            # dimension d has that much of its volume within it.
            direction_key, radius_key = jax.random.split(key)
            normal = jax.random.normal(direction_key, natural.shape, natural.dtype)
            radius = jax.random.uniform(radius_key, (), natural.dtype) ** (
                1.0 / max(natural.size, 1)
            )
            noise = steepest(threat, normal) * radius
        case "l1":
            # As for L2, with the density that depends on the L1 length alone.
            direction_key, radius_key = jax.random.split(key)
            laplace = jax.random.laplace(direction_key, natural.shape, natural.dtype)
            radius = jax.random.uniform(radius_key, (), natural.dtype) ** (
                1.0 / max(natural.size, 1)
            )
            noise = laplace / jnp.sum(jnp.abs(laplace)) * radius
    return clip_to_box(natural + scale * threat.epsilon * noise)


def steepest(threat: Threat, gradient: jax.Array) -> jax.Array:
    """The direction of length one that raises the loss fastest to first order.

    Args:
        threat: its norm decides what length means.
        gradient: d loss / d image, one image of any shape.

    Returns:
        Same shape and dtype: the sign for L-inf, the gradient over its length for L2, the sign at
        the one largest entry for L1; zero where there is no gradient to follow.
    """
    match threat.norm:
        case "linf":
            return jnp.sign(gradient)
        case "l2":
            # The gradient of a confident network may be as small as 1e-30, whose square is zero in
            # float32: a largest entry of one first, or the attack would stand still.
            largest = jnp.max(jnp.abs(gradient))
            scaled = gradient / jnp.where(largest > 0, largest, 1.0)
            length = jnp.sqrt(jnp.sum(jnp.square(scaled)))
            return scaled / jnp.maximum(length, 1.0)
        case "l1":
            largest = jnp.argmax(jnp.abs(gradient))
            there = jnp.arange(gradient.size) == largest
            return jnp.where(there.reshape(gradient.shape), jnp.sign(gradient), 0.0)


def uphill(threat: Threat, image: jax.Array, gradient: jax.Array, length: Any) -> jax.Array:
    """The move of a given length that raises the loss most to first order.

    In L-inf and L2 the pixel box is left to projection. In L1 a move along one entry would soon be
    out of the box and lost, so there it is the best one within (why the box matters in L1: Croce &
    Hein 2021, "Mind the box"): the largest entries of the gradient each go to their bound until the
    length is used up.

    Args:
        threat: its norm decides what length means.
        image: where the move starts, in [0, 1].
        gradient: d loss / d image there.
        length: of the move, in pixel units.

    Returns:
        What to add to the image: same shape and dtype, no longer than `length`.
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
