"""How accurate a network is, and how accurate it stays under attack."""

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
from irp_jax.data.augment import to_float
from irp_jax.errors import extra

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
    callbacks: attacks.Callbacks | None = None,
    known: AttackReport | None = None,
    known_robust: np.ndarray | None = None,
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
        batch_size, mesh, callbacks, known, known_robust, state_file: as in `attacks.evaluate`.

    Raises:
        UserError: as `attacks.evaluate`.
    """
    mesh = parallel.along_one_axis(mesh)
    everywhere = None if mesh is None else parallel.replicated(mesh)
    network = Partial(apply, jax.device_put(variables, everywhere))
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
    """What is right after PGD as most published code counts: by the last iterate of each restart.

    `evaluate` counts every iterate, so that accuracy here is never below it.

    Args:
        apply, variables, images, labels: as for `evaluate`.
        spec: of PGD.
        report: what `evaluate` found with it. Images robust to it are not attacked again.
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
        begin: called before each.
        state_file: the file in which the state of each evaluation is kept, if in any.
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
        seed: of every draw.

    Returns:
        Corruption -> accuracy at severities 1 to 5.

    Raises:
        UserError: the images are too small to be corrupted, or a package is missing.
    """
    with extra("data"):
        from irp_jax.data import corruptions

    callbacks = callbacks or attacks.Callbacks()
    devices = 1 if mesh is None else mesh.size
    everywhere = None if mesh is None else parallel.replicated(mesh)
    network = Partial(apply, jax.device_put(variables, everywhere))
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
    natural = _pixels(images)
    run = functools.partial(attacks.once, network, images=natural, labels=labels, threat=threat)
    fgsm = run(attack=FGSM, key=key).worst.is_adversarial
    pgd = run(attack=attacks.Pgd(gradient_steps=steps), key=key).worst.is_adversarial
    return _rates(network, natural, labels, fgsm, pgd)


(FGSM,) = AttackSpec(name="fgsm").attacks


@jax.jit
def _pixels(images: jax.Array) -> jax.Array:
    """float32 in [0, 1] from uint8; float32 as it is."""
    return to_float(images) if images.dtype == jnp.uint8 else images


@jax.jit
def _rates(
    network: Partial, images: jax.Array, labels: jax.Array, fgsm: jax.Array, pgd: jax.Array
) -> Probe:
    """Accuracies; an image misclassified as it is counts as broken by every attack."""
    natural = ~jax.vmap(attacks.is_correct)(network(images), labels)
    wrong = (natural, natural | fgsm, natural | pgd)
    return Probe(*(jnp.mean(~mask, dtype=jnp.float32) for mask in wrong))
