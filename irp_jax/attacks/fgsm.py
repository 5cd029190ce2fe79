"""Attacks of a single gradient step, fast enough to train on.

They differ in three numbers only: how wide the random start is, how long the step is, and whether
the result is brought back into the ball. `FAST_ATTACKS` lists the published choices.
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
        name: what it is called on the command line.
        start_scale: radius of the ball the start is drawn from; 0 starts at the natural image.
        step_scale: length of the step.
        project_ball: whether the result is brought back into the epsilon ball. It is brought into
            the pixel box either way.
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
        # N-FGSM) clips the noisy start and the result to the pixel box; so does this.
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
        logits_fn: images (N, H, W, C) -> logits (N, K). It sees the batch as a whole, so it may
            normalise by the statistics of that batch, as training does.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) integer.
        threat: the norm, and the epsilon that the attack's lengths are multiples of.
        key: image i draws its start from `fold_in(key, i)`; unused without a random start.
        attack: start, step and projection.
        loss: what to climb, for one example.

    Returns:
        (N, H, W, C) float32 in [0, 1], through which no gradient flows. No further than epsilon
        from `images` if `attack.project_ball`, else than (start_scale + step_scale) * epsilon.
    """
    begin = images
    if attack.start_scale > 0:
        begin = starts(threat, key, images, attack.start_scale)
    gradient = input_gradient(logits_fn, begin, labels, loss)
    centres = images if attack.project_ball else None
    return jax.lax.stop_gradient(step(threat, begin, centres, gradient, attack.step_scale))
