"""How accurate a network is, and how accurate it stays under attack."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import attacks, parallel
from irp_jax.attacks import AttackReport, AttackSpec
from irp_jax.data.augment import to_float

Apply = Callable[[Any, jax.Array], jax.Array]
"""A network in inference mode: (variables, images (N, H, W, C) float32 in [0, 1]) -> (N, K)."""


class Probe(NamedTuple):
    """Accuracies on one batch, () float32 each, still on the device.

    PGD accuracy that collapses while FGSM accuracy does not is how catastrophic overfitting looks.
    (The guard compares with the attack trained on instead: `training.overfitting`.)

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
    watch: attacks.Watch | None = None,
    known: AttackReport | None = None,
    spared: np.ndarray | None = None,
    state_file: Path | None = None,
) -> AttackReport:
    """Measures natural and robust accuracy on a whole set.

    Args:
        apply: the network in inference mode, normalisation inside. Pass the same function again to
            reuse what was compiled for it: other variables of the same shapes, another radius or
            seed compile nothing new.
        variables: its pytree of arrays.
        images: (N, H, W, C) uint8, or float in [0, 1].
        labels: (N,) integer.
        spec: the attack.
        batch_size, mesh, watch, known, spared, state_file: as in `attacks.assess`.

    Raises:
        UserError: as `attacks.assess`.
    """
    mesh = parallel.along_one_axis(mesh)
    everywhere = None if mesh is None else parallel.replicated(mesh)
    network = Partial(apply, jax.device_put(variables, everywhere))
    return attacks.assess(
        network, images, labels, spec.attacks, threat=spec.threat, seed=spec.seed,
        batch_size=batch_size, mesh=mesh, look_first=spec.name == "autoattack",
        watch=watch, known=known, spared=spared, state_file=state_file,
    )  # fmt: skip


def last_iterate(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    spec: AttackSpec,
    report: AttackReport,
    **settings: Any,
) -> AttackReport:
    """What is right after PGD as most published code counts: by the last iterate of each restart.

    `evaluate` counts every iterate, so that accuracy here is never below it.

    Args:
        apply, variables, images, labels: as for `evaluate`.
        spec: of PGD.
        report: what `evaluate` found with it. What stands there is not attacked again.
        **settings: batch_size, mesh, watch and state_file, as for `evaluate`.
    """
    last = dataclasses.replace(spec, name="pgd-last")
    return evaluate(apply, variables, images, labels, last, spared=report.standing, **settings)


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
    network = Partial(apply, variables)
    clean = _pixels(images)
    run = functools.partial(attacks.once, network, images=clean, labels=labels, threat=threat)
    fgsm = run(attack=FGSM, key=key).worst.fallen
    pgd = run(attack=attacks.Pgd(gradient_steps=steps), key=key).worst.fallen
    return _rates(network, clean, labels, fgsm, pgd)


(FGSM,) = AttackSpec(name="fgsm").attacks


@jax.jit
def _pixels(images: jax.Array) -> jax.Array:
    """float32 in [0, 1] from uint8; float32 as it is."""
    return to_float(images) if images.dtype == jnp.uint8 else images


@jax.jit
def _rates(
    network: Partial, images: jax.Array, labels: jax.Array, fgsm: jax.Array, pgd: jax.Array
) -> Probe:
    """Accuracies from what fell; an image misclassified as it is has fallen to all."""
    natural = ~jax.vmap(attacks.is_correct)(network(images), labels)
    wrong = (natural, natural | fgsm, natural | pgd)
    return Probe(*(jnp.mean(~mask, dtype=jnp.float32) for mask in wrong))
