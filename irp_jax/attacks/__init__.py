"""Adversarial attacks in plain JAX, on any `logits_fn(images) -> logits`.

Images are (N, H, W, C) in [0, 1] and radii are in the same units, so normalisation belongs inside
the network. Example:

    from irp_jax import attacks

    report = attacks.autoattack(logits_fn, images, labels, threat=attacks.linf(8 / 255))
    print(report.robust, report.accuracy, report.warnings)

    (pgd,) = attacks.AttackSpec(name="pgd", steps=50, restarts=10).attacks
    report = attacks.assess(logits_fn, images, labels, [pgd], threat=attacks.linf(8 / 255))
"""

from irp_jax.attacks.apgd import Apgd
from irp_jax.attacks.assess import AttackReport, assess, predict
from irp_jax.attacks.attack import Attack, Attacked, Problem
from irp_jax.attacks.autoattack import VERSIONS, autoattack, published
from irp_jax.attacks.campaign import Watch
from irp_jax.attacks.fab import Fab
from irp_jax.attacks.fgsm import FAST_ATTACKS, FastAttack, fgsm
from irp_jax.attacks.losses import (
    LogitsFn,
    Loss,
    cross_entropy,
    dlr,
    is_correct,
    margin,
    targeted_dlr,
)
from irp_jax.attacks.pgd import STEP_RATIO, Pgd
from irp_jax.attacks.runs import once, run_key
from irp_jax.attacks.spec import ATTACKS, AttackName, AttackSpec
from irp_jax.attacks.square import Square
from irp_jax.attacks.threat import (
    NORMS,
    Norm,
    Threat,
    clip_to_box,
    distance,
    l1,
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
    "VERSIONS",
    "Apgd",
    "Attack",
    "AttackName",
    "AttackReport",
    "AttackSpec",
    "Attacked",
    "Fab",
    "FastAttack",
    "LogitsFn",
    "Loss",
    "Norm",
    "Pgd",
    "Problem",
    "Square",
    "Threat",
    "Watch",
    "assess",
    "autoattack",
    "clip_to_box",
    "cross_entropy",
    "distance",
    "dlr",
    "fgsm",
    "is_correct",
    "l1",
    "l2",
    "linf",
    "margin",
    "once",
    "predict",
    "project",
    "published",
    "random_start",
    "run_key",
    "steepest",
    "targeted_dlr",
]
