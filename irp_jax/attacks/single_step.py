"""Attacks of a single gradient step, fast enough for training.

They differ in three settings only: the radius of the random start, the length of the step, and
whether the result is projected into the ball. `FAST_ATTACKS` lists the published choices.
"""

import dataclasses

import jax

from irp_jax.attacks.ascent import input_gradient, starts, step
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy
from irp_jax.attacks.threat import Threat


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastAttack:
    """One gradient step from a random start; lengths in units of the threat's epsilon.

    Attributes:
        name: the name on the command line.
        start_scale: radius of the ball the start is drawn from; 0 starts at the natural image.
        step_scale: length of the step.
        project_ball: whether the result is projected into the epsilon ball. It is clipped to the
            pixel box either way.
    """

    name: str
    start_scale: float
    step_scale: float
    project_ball: bool


FAST_ATTACKS: dict[str, FastAttack] = {
    attack.name: attack
    for attack in (
        # Goodfellow et al. 2015, "Explaining and harnessing adversarial examples".
        FastAttack(name="fgsm", start_scale=0.0, step_scale=1.0, project_ball=True),
        # Wong, Rice & Kolter 2020, "Fast is better than free", algorithm 3.
        FastAttack(name="fgsm-rs", start_scale=1.0, step_scale=1.25, project_ball=True),
        # de Jorge et al. 2022, "Make some noise". Their code (train.py of github.com/pdejorge/
        # N-FGSM) clips the noisy start and the result to the pixel box, as here.
        FastAttack(name="n-fgsm", start_scale=2.0, step_scale=1.0, project_ball=False),
    )
}


def fgsm(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    threat: Threat,
    *,
    key: jax.Array,
    attack: FastAttack = FAST_ATTACKS["fgsm"],
    loss: Loss = cross_entropy,
) -> jax.Array:
    """Perturbs a batch with one step of steepest ascent; for use inside a jitted training step.

    Args:
        logits_fn: images (N, H, W, C) -> logits (N, K). It gets the whole batch, so it may
            normalise by the statistics of that batch, as in training.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) integer.
        threat: the norm, and epsilon, the unit of the attack's lengths.
        key: image i draws its start from `fold_in(key, i)`; unused without a random start.
        attack: start, step and projection.
        loss: the loss to increase, for one example.

    Returns:
        (N, H, W, C) float32 in [0, 1], with gradients stopped. It is within epsilon of `images` if
        `attack.project_ball`, else within (start_scale + step_scale) * epsilon.
    """
    begin = images
    if attack.start_scale > 0:
        begin = starts(threat, key, images, attack.start_scale)
    gradient = input_gradient(logits_fn, begin, labels, loss)
    centres = images if attack.project_ball else None
    return jax.lax.stop_gradient(step(threat, begin, centres, gradient, attack.step_scale))
