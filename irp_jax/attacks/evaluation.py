"""Attacks a network and reports how robust it is."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import parallel
from irp_jax.attacks import checks, sanity, state
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.losses import LogitsFn, margin
from irp_jax.attacks.runner import Callbacks, run_attacks
from irp_jax.attacks.square import Square
from irp_jax.attacks.state import EvaluationState
from irp_jax.attacks.threat import Threat, check_epsilon, distance
from irp_jax.errors import UserError

KNOWN_BY = 8
"""Number of images whose gradients a state file holds, to recognise its network."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AttackReport:
    """The results of attacks on a network.

    Attributes:
        natural: fraction of natural images classified correctly.
        accuracy: attack name -> fraction still classified correctly after it and all before it.
        adversarial: (N, H, W, C) float32 in [0, 1], within epsilon of the natural images: the
            adversarial example where one was found and confirmed by a second forward pass; else the
            natural image.
        is_robust: (N,) bool, images classified correctly after every attack.
        broken_by: (N,) the name of the attack that broke the image, "natural" if its natural image
            is misclassified, "" if it is robust.
        seconds: attack name -> wall time, compilation included.
        warnings: one line for each reason to doubt the figures, with a remedy.
    """

    natural: float
    accuracy: Mapping[str, float]
    adversarial: np.ndarray
    is_robust: np.ndarray
    broken_by: np.ndarray
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        after = ", ".join(f"{name} {share:.2%}" for name, share in self.accuracy.items())
        doubts = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"AttackReport({len(self.is_robust)} images, natural {self.natural:.2%}"
            f"{', ' * bool(after)}{after}{doubts})"
        )

    @property
    def robust(self) -> float:
        """Fraction of images that no attack broke: the worst case over all attacks."""
        return float(self.is_robust.mean())


def evaluate(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    attacks: Sequence[Attack],
    *,
    threat: Threat,
    seed: int = 0,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    sanity_checks: bool = True,
    callbacks: Callbacks | None = None,
    known: AttackReport | None = None,
    known_robust: np.ndarray | None = None,
    state_file: str | Path | None = None,
) -> AttackReport:
    """Runs attacks one after another, each on the images that are robust to those before it.

    Args:
        logits_fn: any JAX function images (B, H, W, C) float32 -> logits (B, K), each row of which
            depends on its own image only (inference mode). A function is compiled again in every
            call; give a `jax.tree_util.Partial` of a function and its variables to compile once for
            many calls and sets of variables.
        images: (N, H, W, C), uint8 or float in [0, 1].
        labels: (N,) integers in [0, K).
        attacks: in order, with different names. An empty list measures natural accuracy only.
        threat: the ball, for instance `attacks.linf(8 / 255)`.
        seed: seed of all random numbers. The result is the same for every batch size and number of
            devices, to the rounding of the network.
        batch_size: images attacked at once; memory grows with it.
        mesh: devices that batches are split over, of any layout; one device if None.
        sanity_checks: whether to look for signs that the result is not reliable (see `sanity`).
        callbacks: called with progress and warnings.
        known: the report on the same network and images for a smaller ball. Images broken there
            count as broken and are not attacked again.
        known_robust: (N,) bool, images known to be robust to the attack; there must be only one
            attack. They are not attacked. They count as robust if their natural image is
            classified correctly.
        state_file: .npz file that holds the state. After an interruption the same call continues
            from it, with the identical result. If the evaluation is complete, it returns at once.

    Raises:
        UserError: images, labels, logits or settings are invalid. The message is one line that
            names the value and a remedy.
    """
    checks.check_call(attacks, threat, seed)
    mesh = parallel.along_one_axis(mesh)
    images, labels = checks.check_set(images, labels)
    batch_size = checks.check_batch_size(batch_size, 1 if mesh is None else mesh.size, len(images))
    check_epsilon(threat.norm, float(threat.epsilon))
    network = parallel.automatic(checks.as_network(logits_fn))
    checks.check_network(network, (batch_size, *images.shape[1:]))
    logits = predict(network, images, batch_size=batch_size, mesh=mesh)
    checks.check_logits(logits, labels)
    warnings: list[str] = []
    callbacks = callbacks or Callbacks()
    callbacks = dataclasses.replace(callbacks, warn=_once(callbacks.warn, warnings))
    if sanity_checks:
        some = slice(0, batch_size)
        sanity.before(
            network, images[some], labels[some], logits[some],
            averaged=bool(attacks) and all(getattr(each, "eot", 1) > 1 for each in attacks),
            blind=all(isinstance(each, Square) for each in attacks),
            warn=callbacks.warn,
        )  # fmt: skip
    at = _begin(images, logits.argmax(-1) == labels, threat, known)
    if known_robust is not None:
        at = _spared(at, known_robust, attacks, logits.shape[-1])
    saved, save = None, _discard
    if state_file is not None:
        settings = (*attacks, threat, seed, *_digests(known, known_robust))
        name = state.identity(images, labels, settings)
        answers = state.Answers(logits, _gradients(network, images, labels))
        saved = state.read(Path(state_file), name, answers)
        save = functools.partial(state.write, Path(state_file), name=name, answers=answers)
    at = run_attacks(
        network, images, labels, logits, saved or at, attacks, threat,
        seed=seed, batch_size=batch_size, mesh=mesh, callbacks=callbacks, save=save,
    )  # fmt: skip
    report = _report(at, [attack.name for attack in attacks], logits, labels, known)
    if sanity_checks:
        sanity.after(report.accuracy, callbacks.warn)
    return dataclasses.replace(report, warnings=tuple(warnings))


def _once(warn: Callable[[str], None], warnings: list[str]) -> Callable[[str], None]:
    """Returns `warn` for warnings that are not in the list yet, to which it adds them."""

    def new(message: str) -> None:
        if message not in warnings:
            warnings.append(message)
            warn(message)

    return new


def _report(
    at: EvaluationState,
    names: Sequence[str],
    logits: np.ndarray,
    labels: np.ndarray,
    known: AttackReport | None,
) -> AttackReport:
    """Returns the report of a complete evaluation, without its warnings."""
    broken_by = np.array([*names, "natural"])[at.broken_by]
    if known is not None:
        broken_by = np.where(known.is_robust, broken_by, known.broken_by)
    after = (count / len(labels) for count in at.robust_after)
    return AttackReport(
        natural=float(np.mean(logits.argmax(-1) == labels)),
        accuracy=dict(zip(names, after, strict=True)),
        adversarial=at.images,
        is_robust=at.is_robust,
        broken_by=np.where(at.is_robust, "", broken_by),
        seconds=dict(zip(names, at.seconds, strict=True)),
        warnings=(),
    )


def _gradients(network: Partial, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns gradients of the margin at a few images, (B, H, W, C); B is 0 if JAX has none."""
    try:
        return np.asarray(sanity.gradient(network, margin, images[:KNOWN_BY], labels[:KNOWN_BY]))
    except (ValueError, TypeError, NotImplementedError):  # for Python callbacks
        return np.zeros((0, *images.shape[1:]), np.float32)


def _digests(known: AttackReport | None, known_robust: np.ndarray | None) -> tuple[Any, ...]:
    """Returns what identifies earlier results that an evaluation starts from; () without any."""
    found: list[Any] = []
    if known_robust is not None:
        found.append(np.flatnonzero(known_robust).tolist())
    if known is not None:
        broken_by = hashlib.sha256(repr(known.broken_by.tolist()).encode())
        adversarial = hashlib.sha256(known.adversarial.tobytes())
        found += ["known", broken_by.hexdigest(), adversarial.hexdigest()]
    return tuple(found)


def _discard(at: EvaluationState) -> None:
    """Discards the state; used without a state file."""


def _begin(
    images: np.ndarray, right: np.ndarray, threat: Threat, known: AttackReport | None
) -> EvaluationState:
    """Returns the state before the first attack, with the results `known` for a smaller ball."""
    at = state.initial(images, right)
    if known is None:
        return at
    if known.adversarial.shape != images.shape:
        raise UserError(
            f"known has images {known.adversarial.shape}, these are {images.shape}: leave it out"
        )
    far = np.asarray(_distances(threat, known.adversarial, images))
    if far.max() > float(threat.epsilon) * (1 + 1e-4):
        raise UserError(
            f"known has images at distance {far.max():.4g}, beyond epsilon "
            f"{float(threat.epsilon):.4g}: give a report for a smaller ball"
        )
    return dataclasses.replace(
        at, is_robust=at.is_robust & known.is_robust, images=np.array(known.adversarial)
    )


def _spared(
    at: EvaluationState, known_robust: np.ndarray, attacks: Sequence[Attack], classes: int
) -> EvaluationState:
    """Returns the state in which images known to be robust have survived all trials."""
    count = len(at.is_robust)
    if len(attacks) != 1 or np.shape(known_robust) != (count,):
        raise UserError(
            f"known_robust is ({count},) bool for a single attack, got shape "
            f"{np.shape(known_robust)} and {len(attacks)} attacks"
        )
    survived = np.where(known_robust, attacks[0].trials(classes), 0)
    return dataclasses.replace(at, trials=survived.astype(np.int32))


@jax.jit
def _distances(threat: Threat, perturbed: jax.Array, natural: jax.Array) -> jax.Array:
    return jax.vmap(distance, (None, 0, 0))(threat, perturbed, natural)


def predict(
    network: Partial, images: np.ndarray, *, batch_size: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Computes the logits of a whole set, (N, K) float32, in batches of one shape.

    Args:
        network: images (B, H, W, C) float32 -> (B, K).
        images: (N, H, W, C) float32, N >= 1.
        batch_size: a multiple of the number of devices.
        mesh: devices to split each batch over.
    """
    sharding = None if mesh is None else parallel.batch(mesh)
    found = []
    for first in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), len(images) - 1)
        found.append(checks.ask(network, parallel.place(images[rows], sharding)))
    return np.concatenate(parallel.fetch(found)).astype(np.float32)[: len(images)]
