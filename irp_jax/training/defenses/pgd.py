"""Training on attacks of many gradient steps."""

import dataclasses

import jax

from irp_jax.attacks import FAST_ATTACKS, STEP_RATIO, LogitsFn
from irp_jax.attacks.ascent import ascend, input_gradient, starts
from irp_jax.training.defenses.adversarial import Adversarial
from irp_jax.training.defenses.defense import Batch, Perturbed


def length(steps: int) -> float:
    """Of a step, in units of epsilon: a quarter, or more where so few would not cross the ball."""
    return min(FAST_ATTACKS["fgsm-rs"].step_scale, max(STEP_RATIO, 1.5 / steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pgd(Adversarial):
    """Cross-entropy on the last image of projected gradient ascent (Madry et al. 2018).

    The saddle point problem of their equation 2.1, its inner maximum sought as in section 2.1, from
    a random point of the ball in steps of `length`: epsilon / 4 from six steps on.

    Attributes:
        steps: gradient steps of the attack; 10 is what the literature calls PGD-10 training.
    """

    name: str = "pgd"
    steps: int = 10

    @property
    def passes(self) -> float:
        """One a step, the others to learn."""
        return self.steps + self.to_learn

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """See `Defense`."""
        images, labels, threat, key, *_ = batch

        def gradient(current: jax.Array) -> jax.Array:
            return input_gradient(logits_fn, current, labels)

        start = starts(threat, key, images)
        return Perturbed(
            ascend(gradient, threat, start, images, steps=self.steps, length=length(self.steps))
        )
