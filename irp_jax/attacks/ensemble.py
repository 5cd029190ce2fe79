"""AutoAttack: four attacks of different kinds that need no tuning.

An image is robust if it survives all of them: two white-box attacks with different losses, one
search for the nearest decision boundary, and one attack that uses no gradient. A defense that
misleads one kind of attack is usually broken by another.

References:
    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020; for L1, "Mind the box", 2021.
"""

from typing import Any, Literal, get_args

from irp_jax.attacks.apgd import Apgd
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.evaluation import AttackReport, evaluate
from irp_jax.attacks.fab import Fab
from irp_jax.attacks.losses import LogitsFn
from irp_jax.attacks.square import Square
from irp_jax.attacks.threat import Norm, Threat
from irp_jax.errors import unknown

Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = get_args(Version)


def published(version: str, norm: Norm) -> tuple[Attack, ...]:
    """Returns the attacks of a published version, in order.

    Args:
        version: standard; plus, which adds untargeted DLR and FAB and more restarts; or rand, for
            networks that draw random numbers. The gradients of rand are averaged over 20 passes.
        norm: the norm of the ball. L1 has its own numbers of restarts and targets.

    Raises:
        UserError: the version is unknown.
    """
    if version not in VERSIONS:
        raise unknown("version", version, VERSIONS)
    if version == "rand":
        return (
            Apgd(name="apgd-ce", loss="ce", eot=20),
            Apgd(name="apgd-dlr", loss="dlr", eot=20),
        )
    fab_targeted = Fab(name="fab-t", targets=9)
    if version == "plus":
        return (
            Apgd(name="apgd-ce", loss="ce", restarts=5),
            Apgd(name="apgd-dlr", loss="dlr", restarts=5),
            Fab(name="fab", targets=None, restarts=5),
            Square(),
            Apgd(name="apgd-t", loss="targeted-dlr", targets=9),
            fab_targeted,
        )
    restarts, targets = (5, 5) if norm == "l1" else (1, 9)
    return (
        Apgd(name="apgd-ce", loss="ce", restarts=restarts),
        Apgd(name="apgd-t", loss="targeted-dlr", targets=targets),
        fab_targeted,
        Square(),
    )


def autoattack(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    threat: Threat,
    version: str = "standard",
    **settings: Any,
) -> AttackReport:
    """Runs AutoAttack on a network and reports how robust it is.

        report = attacks.autoattack(logits_fn, images, labels, threat=attacks.linf(8 / 255))
        print(report.robust, report.accuracy, report.warnings)

    Args:
        logits_fn, images, labels, threat: as in `evaluate`.
        version: standard, plus or rand. For other attacks, call `evaluate` with a list.
        settings: further arguments of `evaluate`: seed, batch_size, mesh, callbacks, state_file.

    Raises:
        UserError: as in `evaluate`, or the version is unknown.
    """
    listed = published(version, threat.norm)
    return evaluate(logits_fn, images, labels, listed, threat=threat, **settings)
