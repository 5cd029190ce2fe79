"""Adversarial attacks in plain JAX, on any `logits_fn(images) -> logits`.

Images are (N, H, W, C) float32 in [0, 1] and radii are in the same units, so normalisation belongs
inside the network. Example:

    threat = attacks.linf(8 / 255)
    attack = jax.jit(lambda x, y, key: attacks.pgd(logits_fn, x, y, threat, key=key, steps=50))
    found = attack(images, labels, jax.random.key(0))
    robust_accuracy = 1 - found.fallen.mean()
"""

from irp_jax.attacks.cascade import Progress, Round, cascade
from irp_jax.attacks.fgsm import FAST_ATTACKS, FastAttack, fgsm
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy, is_correct, margin
from irp_jax.attacks.pgd import (
    STEP_RATIO,
    Attacked,
    PgdState,
    pgd,
    pgd_example,
    pgd_finish,
    pgd_start,
    pgd_step,
    run_key,
)
from irp_jax.attacks.spec import ATTACKS, AttackName, AttackSpec, Schedule
from irp_jax.attacks.threat import (
    NORMS,
    Norm,
    Threat,
    clip_to_box,
    distance,
    l2,
    linf,
    project,
    random_start,
    steepest,
)

__all__ = [
    "ATTACKS",
    "FAST_ATTACKS",
    "NORMS",
    "STEP_RATIO",
    "AttackName",
    "AttackSpec",
    "Attacked",
    "FastAttack",
    "LogitsFn",
    "Loss",
    "Norm",
    "PgdState",
    "Progress",
    "Round",
    "Schedule",
    "Threat",
    "cascade",
    "clip_to_box",
    "cross_entropy",
    "distance",
    "fgsm",
    "is_correct",
    "l2",
    "linf",
    "margin",
    "pgd",
    "pgd_example",
    "pgd_finish",
    "pgd_start",
    "pgd_step",
    "project",
    "random_start",
    "run_key",
    "steepest",
]
