"""Checks of the images, labels, logits and settings of an attack."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from irp_jax import parallel
from irp_jax.attacks.threat import Threat
from irp_jax.data.dataset import in_unit_range
from irp_jax.errors import UserError


def check_set(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checks images and labels and converts them for attacks.

    Args:
        images: (N, H, W, C), uint8, or float in [0, 1].
        labels: (N,) integers.

    Returns:
        (images (N, H, W, C) float32 in [0, 1], labels (N,) int32).

    Raises:
        UserError: they are anything else; the message names what was given.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not (
        images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
    ):
        raise UserError(
            "images must be (N, H, W, C), uint8 or float in [0, 1], got "
            f"{images.dtype} of shape {images.shape}"
        )
    if len(images) == 0:
        raise UserError("there are no images to attack: give at least one")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    images = images.astype(np.float32)
    clipped = in_unit_range(images)
    if clipped is None:
        raise UserError(
            f"images must lie in [0, 1], these range from {images.min():.7g} to "
            f"{images.max():.7g}: put normalisation inside logits_fn, and divide bytes by 255"
        )
    images = clipped
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels must be integers of shape ({len(images)},), one per image, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    highest = int(labels.max())
    if highest > np.iinfo(np.int32).max:
        raise UserError(f"labels must name classes of the network, got {highest}")
    return images, labels.astype(np.int32)


def check_call(attacks: Any, threat: Any, seed: Any) -> None:
    """Raises UserError unless these are a list of attacks (names differ), a threat and a seed."""
    if not isinstance(threat, Threat):
        raise UserError(f"threat must be a ball, got {threat!r}: give attacks.linf(8 / 255)")
    if not isinstance(attacks, Sequence) or isinstance(attacks, str):
        raise UserError(f"attacks must be a list, got {attacks!r}: give for instance [Pgd()]")
    for attack in attacks:
        if not all(hasattr(attack, part) for part in ("name", "steps", "trials", "start", "step")):
            raise UserError(f"{attack!r} is no attack: give for instance Pgd(gradient_steps=20)")
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise UserError(f"attacks must have different names, got {', '.join(names)}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be in 0 .. 2^32 - 1, got {seed}")


def check_batch_size(batch_size: int, devices: int, images: int) -> int:
    """Returns the batch size to use: lowered if there are fewer images.

    Raises:
        UserError: the batch size is not a positive multiple of the number of devices.
    """
    if batch_size < 1 or batch_size % devices:
        raise UserError(
            f"batch size {batch_size} is not a positive multiple of {devices} devices: "
            f"use {max(1, round(batch_size / devices)) * devices}"
        )
    return min(batch_size, math.ceil(images / devices) * devices)


def as_network(logits_fn: Any) -> Partial:
    """Returns the network as a `Partial`, for compiled programs.

    A plain function gets a new wrapper in every call. JAX caches programs by the identity of the
    function, and the variables that it closes over are constants in them. Without a new wrapper, a
    network trained further in the meantime would run with its old variables. A `Partial` passes its
    variables as arguments and is compiled once.
    """
    return logits_fn if isinstance(logits_fn, Partial) else Partial(lambda x: logits_fn(x))


@jax.jit
def ask(network: Partial, images: jax.Array) -> jax.Array:
    """Returns the logits of the network. It is traced once for each shape."""
    return network(images)


def check_network(logits_fn: Partial, shape: tuple[int, ...]) -> None:
    """Raises UserError unless images of that shape give one float array (B, K >= 2)."""
    try:
        answer = jax.eval_shape(ask, logits_fn, jax.ShapeDtypeStruct(shape, np.float32))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise UserError(
            "logits_fn cannot be compiled by JAX: use jax.numpy inside, no NumPy, float() or if on "
            "values, and no flag such as train=False as an argument of a Partial "
            f"({str(error).splitlines()[0]})"
        ) from error
    count = shape[0]
    if (
        not isinstance(answer, jax.ShapeDtypeStruct)
        or not jax.numpy.issubdtype(answer.dtype, np.floating)
        or len(answer.shape) != 2
        or answer.shape[0] != count
        or answer.shape[1] < 2
    ):
        seen = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", answer)
        raise UserError(
            f"logits_fn must return ({count}, K) floats, K >= 2, for {count} images, got {seen}"
        )
    if parallel.is_explicit(getattr(answer.sharding, "mesh", None)):
        raise UserError(
            "logits_fn closes over arrays on a mesh of Explicit axes, where attacks cannot be "
            "compiled: make the mesh with axis_types=(jax.sharding.AxisType.Auto,), or give "
            "jax.tree_util.Partial(function, variables)"
        )


def check_logits(logits: np.ndarray, labels: np.ndarray) -> None:
    """Raises UserError unless these logits (N, K) are finite and labels name their classes."""
    classes = logits.shape[1]
    if not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(
            f"labels must be in 0 .. {classes - 1} for {classes} logits, these range from "
            f"{labels.min()} to {labels.max()}"
        )
    broken = int((~np.isfinite(logits)).any(-1).sum())
    if broken:
        raise UserError(
            f"logits_fn returns NaN or infinity for {broken} of {len(logits)} natural images: "
            "repair the network"
        )
