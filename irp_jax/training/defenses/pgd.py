"""Training on attacks of many gradient steps."""

import dataclasses

import jax

from irp_jax.attacks import FAST_ATTACKS, STEP_RATIO, LogitsFn
from irp_jax.attacks.ascent import ascend, input_gradient, starts
from irp_jax.training.defenses.adversarial import Adversarial
from irp_jax.training.defenses.defense import Batch, Perturbed


def step_length(steps: int) -> float:
    """Returns the step length in units of epsilon: 1/4, or more if there are few steps.

    Fewer than six steps of 1/4 could not cross the ball. They then have length 1.5 / steps, at most
    that of FGSM-RS.
    """
    return min(FAST_ATTACKS["fgsm-rs"].step_scale, max(STEP_RATIO, 1.5 / steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PgdTraining(Adversarial):
    """Cross-entropy on the last iterate of projected gradient ascent (Madry et al. 2018).

    It is the saddle point problem of their equation 2.1, with the inner maximisation of section
    2.1. The start is a random point of the ball. Steps have length `length`, which is epsilon / 4
    for six or more steps.

    Attributes:
        steps: gradient steps of the attack; 10 is called PGD-10 training in the literature.
    """

    name: str = "pgd"
    steps: int = 10

    @property
    def passes(self) -> float:
        """One pass for each attack step, the others for the descent step."""
        return self.steps + self.to_learn

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by PGD from a random start."""
        images, labels, threat, key, *_ = batch

        def gradient(current: jax.Array) -> jax.Array:
            return input_gradient(logits_fn, current, labels)

        start = starts(threat, key, images)
        return Perturbed(
            ascend(
                gradient, threat, start, images, steps=self.steps, length=step_length(self.steps)
            )
        )
