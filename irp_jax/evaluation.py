"""Measures the accuracy of a network, without attacks and under attack."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import attacks, parallel
from irp_jax.attacks import AttackReport, AttackSpec
from irp_jax.data.augmentation import to_float
from irp_jax.errors import extra

Apply = Callable[[Any, jax.Array], jax.Array]
"""A network in inference mode: (variables, images (N, H, W, C) float32 in [0, 1]) -> (N, K)."""


class Probe(NamedTuple):
    """Accuracies on one batch, () float32 each, still on the device.

    Catastrophic overfitting shows as a PGD accuracy that collapses while the FGSM accuracy does
    not. The guard compares with the attack used for training instead (`training.overfitting`).
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
    callbacks: attacks.Callbacks | None = None,
    known: AttackReport | None = None,
    known_robust: np.ndarray | None = None,
    state_file: Path | None = None,
) -> AttackReport:
    """Measures natural and robust accuracy on a whole set.

    Args:
        apply: the network in inference mode, normalisation inside. Pass the same function again to
            reuse its compiled programs: other variables of the same shapes, another radius or
            another seed compile nothing new.
        variables: its pytree of arrays.
        images: (N, H, W, C) uint8, or float in [0, 1].
        labels: (N,) integer.
        spec: the attack.
        batch_size, mesh, callbacks, known, known_robust, state_file: as in `attacks.evaluate`.

    Raises:
        UserError: as `attacks.evaluate`.
    """
    mesh = parallel.along_one_axis(mesh)
    everywhere = None if mesh is None else parallel.replicated(mesh)
    network = Partial(apply, parallel.place(variables, everywhere))
    return attacks.evaluate(
        network, images, labels, spec.attacks, threat=spec.threat, seed=spec.seed,
        batch_size=batch_size, mesh=mesh, sanity_checks=spec.name == "autoattack",
        callbacks=callbacks, known=known, known_robust=known_robust, state_file=state_file,
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
    """Measures accuracy under PGD where only the last iterate of each restart counts.

    Most published code counts so. `evaluate` counts every iterate, so its accuracy is never higher.

    Args:
        apply, variables, images, labels: as for `evaluate`.
        spec: the PGD attack.
        report: the report of `evaluate` for it. Its robust images are not attacked again.
        **settings: batch_size, mesh, callbacks and state_file, as for `evaluate`.
    """
    last = dataclasses.replace(spec, name="pgd-last")
    return evaluate(
        apply, variables, images, labels, last, known_robust=report.is_robust, **settings
    )


def curve(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    specs: Sequence[AttackSpec],
    *,
    begin: Callable[[AttackSpec], None] = lambda spec: None,
    state_file: Callable[[AttackSpec], Path | None] = lambda spec: None,
    **settings: Any,
) -> list[AttackReport]:
    """Measures robust accuracy at several radii: a robustness curve.

    An image that is broken at one radius is broken at all larger ones, and is not attacked again.

    Args:
        apply, variables, images, labels: as for `evaluate`.
        specs: one attack at ascending radii.
        begin: called before each attack.
        state_file: the file that holds the state of each evaluation; None for no file.
        **settings: batch_size, mesh and callbacks, as for `evaluate`.

    Returns:
        A report for each spec.
    """
    reports: list[AttackReport] = []
    for spec in specs:
        begin(spec)
        known = reports[-1] if reports else None
        found = evaluate(
            apply, variables, images, labels, spec, known=known, state_file=state_file(spec),
            **settings,
        )  # fmt: skip
        reports.append(found)
    return reports


def corrupted(
    apply: Apply,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    callbacks: attacks.Callbacks | None = None,
) -> dict[str, list[float]]:
    """Measures accuracy under common corruptions (Hendrycks & Dietterich 2019).

    Args:
        apply, variables, labels, batch_size, mesh, callbacks: as for `evaluate`.
        images: (N, H, W, C) uint8.
        seed: seed of all random numbers.

    Returns:
        Corruption -> accuracy at severities 1 to 5.

    Raises:
        UserError: the images are too small for corruptions, or a package is missing.
    """
    with extra("data"):
        from irp_jax.data import corruptions

    callbacks = callbacks or attacks.Callbacks()
    devices = 1 if mesh is None else mesh.size
    everywhere = None if mesh is None else parallel.replicated(mesh)
    network = Partial(apply, parallel.place(variables, everywhere))
    batch_size = min(batch_size, devices * math.ceil(len(images) / devices))
    found: dict[str, list[float]] = {}
    callbacks.begin("corruptions", len(images))
    for done, name in enumerate(corruptions.CORRUPTIONS, start=1):
        found[name] = []
        for severity in corruptions.SEVERITIES:
            changed = corruptions.corrupt(images, name, severity, seed=seed)
            pixels = changed.astype(np.float32) / np.float32(255)
            logits = attacks.predict(network, pixels, batch_size=batch_size, mesh=mesh)
            found[name].append(float((logits.argmax(-1) == labels).mean()))
        callbacks.progress(done, len(corruptions.CORRUPTIONS), len(images))
    return found


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
        apply: the network in inference mode. Pass the same function again to reuse its compiled
            programs.
        variables: its pytree of arrays.
        images: (N, H, W, C) uint8, or float32 in [0, 1].
        labels: (N,) int32.
        threat: the ball.
        key: PRNG key of PGD's random starts.
        steps: number of PGD steps, of length epsilon / 4.

    Returns:
        Three scalars on the device. An image that is misclassified without an attack counts as an
        error in all three.
    """
    network = Partial(apply, variables)
    natural = _pixels(images)
    run = functools.partial(attacks.once, network, images=natural, labels=labels, threat=threat)
    fgsm = run(attack=FGSM, key=key).worst.is_adversarial
    pgd = run(attack=attacks.Pgd(gradient_steps=steps), key=key).worst.is_adversarial
    return _rates(network, natural, labels, fgsm, pgd)


(FGSM,) = AttackSpec(name="fgsm").attacks


@jax.jit
def _pixels(images: jax.Array) -> jax.Array:
    """Converts uint8 to float32 in [0, 1]; returns float32 unchanged."""
    return to_float(images) if images.dtype == jnp.uint8 else images


@jax.jit
def _rates(
    network: Partial, images: jax.Array, labels: jax.Array, fgsm: jax.Array, pgd: jax.Array
) -> Probe:
    """Returns the accuracies; an image misclassified without an attack counts as wrong in all."""
    natural = ~jax.vmap(attacks.is_correct)(network(images), labels)
    wrong = (natural, natural | fgsm, natural | pgd)
    return Probe(*(jnp.mean(~mask, dtype=jnp.float32) for mask in wrong))
