"""Adversarial attacks in plain JAX, on any `logits_fn(images) -> logits`.

Images are (N, H, W, C) in [0, 1]. Radii are in the same units. Normalisation therefore belongs
inside the network. Example:

    from irp_jax import attacks

    report = attacks.autoattack(logits_fn, images, labels, threat=attacks.linf(8 / 255))
    print(report.robust, report.accuracy, report.warnings)

    (pgd,) = attacks.AttackSpec(name="pgd", steps=50, restarts=10).attacks
    report = attacks.evaluate(logits_fn, images, labels, [pgd], threat=attacks.linf(8 / 255))
"""

from irp_jax.attacks.apgd import Apgd
from irp_jax.attacks.attack import Attack, Attacked, Problem
from irp_jax.attacks.ensemble import VERSIONS, autoattack, published
from irp_jax.attacks.evaluation import AttackReport, evaluate, predict
from irp_jax.attacks.fab import Fab
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
from irp_jax.attacks.runner import Callbacks
from irp_jax.attacks.single_step import FAST_ATTACKS, FastAttack, fgsm
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
from irp_jax.attacks.trials import once, trial_key

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
    "Callbacks",
    "Fab",
    "FastAttack",
    "LogitsFn",
    "Loss",
    "Norm",
    "Pgd",
    "Problem",
    "Square",
    "Threat",
    "autoattack",
    "clip_to_box",
    "cross_entropy",
    "distance",
    "dlr",
    "evaluate",
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
    "steepest",
    "targeted_dlr",
    "trial_key",
]
