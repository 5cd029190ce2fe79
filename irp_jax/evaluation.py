"""How accurate a network is, and how accurate it stays under attack.

The images a network gets wrong as they are have fallen already; the attack is then run on the rest,
restart after restart, always on full batches of images that still stand. `attacks.cascade` does
that bookkeeping on the host; the programs it sends to the device are at the end of this file.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from irp_jax import attacks, parallel
from irp_jax.attacks import AttackSpec
from irp_jax.data.augment import to_float
from irp_jax.errors import UserError

Apply = Callable[[Any, jax.Array], jax.Array]
"""A network in inference mode: (variables, images (N, H, W, C) float32 in [0, 1]) -> (N, K)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What an evaluation found.

    Attributes:
        natural: fraction of the images classified correctly as they are.
        robust: fraction that no run of the attack got misclassified; `natural` without an attack.
        fallen: (N,) bool, the images that are not robust: those misclassified as they are, and
            those that fell to the attack.
        images: N.
        seconds: wall time, compilation included.
    """

    natural: float
    robust: float
    fallen: np.ndarray
    images: int
    seconds: float


class Probe(NamedTuple):
    """Accuracies on one batch, () float32 each, still on the device.

    FGSM accuracy that soars while PGD accuracy collapses is catastrophic overfitting.
    """

    natural: jax.Array
    fgsm: jax.Array
    pgd: jax.Array


def evaluate(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    spec: AttackSpec,
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    progress: attacks.Progress | None = None,
) -> Report:
    """Measures natural and robust accuracy on a whole set.

    Restart r of image i draws from a key made of (seed, i, r) alone, so the outcome does not
    depend on the batch size, on the number of devices or on which other images still stand
    (beyond the rounding of the network itself). Another set of variables of the same shapes,
    another radius, step size, step count or seed reuses the compiled program.

    Args:
        apply: the network in inference mode, normalisation inside. Pass the same function again to
            reuse what was compiled for it.
        variables: its pytree of arrays.
        images: (N, H, W, C) uint8.
        labels: (N,) integer.
        spec: the attack.
        batch_size: runs in one compiled batch; lowered if there are fewer images.
        mesh: a mesh with an axis "data" over which each batch is split; one device if None.
        progress: called after every batch; work is counted in passes of one image.

    Returns:
        The accuracies over all N images, and which fell.

    Raises:
        UserError: no images, images that are not uint8 (N, H, W, C), labels of another length, or
            a batch size that the devices cannot share evenly.
    """
    began = time.perf_counter()
    _check_set(images, labels)
    labels = labels.astype(np.int32)
    devices = 1 if mesh is None else mesh.size
    if batch_size < 1 or batch_size % devices:
        raise UserError(
            f"batch size {batch_size} cannot be shared by {devices} devices: "
            f"use {max(1, round(batch_size / devices)) * devices}"
        )
    batch_size = min(batch_size, math.ceil(len(images) / devices) * devices)
    rows = None if mesh is None else parallel.batch(mesh)
    everywhere = None if mesh is None else parallel.replicated(mesh)
    variables = jax.device_put(variables, everywhere)
    key = jax.random.key(spec.seed)
    schedule = spec.schedule

    def is_wrong(indices: np.ndarray, _: np.ndarray) -> jax.Array:
        x, y = jax.device_put((images[indices], labels[indices]), rows)
        return _share(_is_wrong(apply, variables, x, y), everywhere)

    def falls(indices: np.ndarray, restarts: np.ndarray) -> jax.Array:
        x, y = jax.device_put((images[indices], labels[indices]), rows)
        i, r = jax.device_put((indices, restarts), rows)
        found = _attack(apply, variables, x, y, i, r, key, spec.threat, schedule)
        return _share(found, everywhere)

    rounds = [attacks.Round(judge=is_wrong, restarts=1, cost=1)]
    if spec.name != "none":
        cost = schedule.steps + 1
        rounds.append(attacks.Round(judge=falls, restarts=schedule.restarts, cost=cost))
    after = attacks.cascade(rounds, len(images), batch_size, progress)
    return Report(
        natural=float(after[0].mean()),
        robust=float(after[-1].mean()),
        fallen=~after[-1],
        images=len(images),
        seconds=time.perf_counter() - began,
    )


def probe(
    apply: Apply,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    threat: attacks.Threat,
    *,
    key: jax.Array,
    steps: int = 10,
) -> Probe:
    """Measures natural, FGSM and PGD accuracy on one batch, without waiting for the result.

    Args:
        apply: the network in inference mode. Pass the same function again to reuse what was
            compiled for it.
        variables: its pytree of arrays.
        images: (N, H, W, C) uint8, or float32 in [0, 1].
        labels: (N,) int32.
        threat: the ball.
        key: of PGD's random starts.
        steps: PGD's steps, of length epsilon / 4.

    Returns:
        Three scalars on the device, to be fetched when convenient. An image misclassified as it is
        counts against all three.
    """
    indices = jnp.arange(len(images), dtype=jnp.int32)
    once = (apply, variables, images, labels, indices, jnp.zeros_like(indices), key, threat)
    epsilon = threat.epsilon
    fgsm = attacks.Schedule(steps=1, step_size=epsilon, start_scale=0.0, restarts=1)
    pgd = attacks.Schedule(
        steps=steps, step_size=epsilon * attacks.STEP_RATIO, start_scale=1.0, restarts=1
    )
    wrong = _is_wrong(apply, variables, images, labels)
    return _rates(wrong, _attack(*once, fgsm), _attack(*once, pgd))


def _check_set(images: np.ndarray, labels: np.ndarray) -> None:
    """Raises UserError unless these are N >= 1 uint8 images with a label each."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise UserError(
            f"images must be uint8 (N, H, W, C), got {images.dtype} of shape {images.shape}"
        )
    if len(images) == 0:
        raise UserError("there are no images to evaluate: give at least one")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels must be integers of shape ({len(images)},), one an image, "
            f"got {labels.dtype} of shape {labels.shape}"
        )


def _pixels(images: jax.Array) -> jax.Array:
    """float32 in [0, 1] from uint8; float32 as it is."""
    return to_float(images) if images.dtype == jnp.uint8 else images


@functools.partial(jax.jit, static_argnums=1)
def _share(result: jax.Array, everywhere: NamedSharding | None) -> jax.Array:
    """Gives every device, and so every process, the whole of a small result."""
    return result if everywhere is None else jax.lax.with_sharding_constraint(result, everywhere)


@functools.partial(jax.jit, static_argnums=0)
def _is_wrong(apply: Apply, variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """(N,) bool: which images the network gets wrong."""
    logits = apply(variables, _pixels(images))
    return ~jax.vmap(attacks.is_correct)(logits, labels)


def _attack(
    apply: Apply,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    restarts: jax.Array,
    key: jax.Array,
    threat: attacks.Threat,
    schedule: attacks.Schedule,
) -> jax.Array:
    """(N,) bool on the device: which runs of PGD made their image fall.

    The loop over steps is here and not in `lax`: XLA's CPU backend lays out the gradient of a
    convolution well only outside a loop, and is 8 to 25 times slower inside (jax-ml/jax issue
    12868). Nothing is waited for: the steps are sent off one behind the other, and a program of
    one step also compiles sooner and serves any number of them.
    """
    clean, state = _start(images, indices, restarts, key, threat, schedule.start_scale)
    for _ in range(schedule.steps):
        state = _step(apply, variables, state, clean, labels, threat, schedule.step_size)
    return _finish(apply, variables, state, labels)


@jax.jit
def _start(
    images: jax.Array,
    indices: jax.Array,
    restarts: jax.Array,
    key: jax.Array,
    threat: attacks.Threat,
    start_scale: float | jax.Array,
) -> tuple[jax.Array, attacks.PgdState]:
    """The clean images as float32, and a run begun from each."""
    clean = _pixels(images)

    def start(image: jax.Array, index: jax.Array, restart: jax.Array) -> attacks.PgdState:
        run = attacks.run_key(key, index, restart)
        return attacks.pgd_start(image, threat, key=run, start_scale=start_scale)

    return clean, jax.vmap(start)(clean, indices, restarts)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    apply: Apply,
    variables: Any,
    state: attacks.PgdState,
    clean: jax.Array,
    labels: jax.Array,
    threat: attacks.Threat,
    step_size: float | jax.Array,
) -> attacks.PgdState:
    """Every run one step further."""
    step = functools.partial(attacks.pgd_step, functools.partial(apply, variables))
    return jax.vmap(functools.partial(step, threat=threat, step_size=step_size))(
        state, clean, labels
    )


@functools.partial(jax.jit, static_argnums=0)
def _finish(apply: Apply, variables: Any, state: attacks.PgdState, labels: jax.Array) -> jax.Array:
    """(N,) bool: which runs found an image that the network gets wrong."""
    finish = functools.partial(attacks.pgd_finish, functools.partial(apply, variables))
    return jax.vmap(finish)(state, labels).fallen


@jax.jit
def _rates(natural: jax.Array, fgsm: jax.Array, pgd: jax.Array) -> Probe:
    """Accuracies from what went wrong; an image misclassified as it is has fallen to all."""
    wrong = (natural, natural | fgsm, natural | pgd)
    return Probe(*(jnp.mean(~mask, dtype=jnp.float32) for mask in wrong))
