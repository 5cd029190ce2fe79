"""FGSM training whose attack on an image starts from what earlier attacks on it found."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, clip_to_box
from irp_jax.attacks.ascent import input_gradient, step
from irp_jax.training.defenses.consistency import consistent
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained

LEVELS = 127
"""A remembered perturbation is a whole number of steps of epsilon / LEVELS: a share of the radius,
with which it grows while that warms up."""

ROOTS = 16.0
"""A remembered momentum is (a whole number / ROOTS)^2, with the number's sign: up to 63."""


class Prior(NamedTuple):
    """What is remembered of every image, in its own frame, not that of a crop.

    Attributes:
        start: (M, H, W, C) int8, the perturbation its next attack starts from, in epsilon / LEVELS.
        momentum: (M, H, W, C) int8, the running sum of its gradients, each over its mean size; on a
            square-root scale (`ROOTS`), since only the sign of a sum is ever used.
    """

    start: jax.Array
    momentum: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mep(Defense):
    """FGSM-MEP: the start is the momentum of earlier perturbations (Jia et al. 2022).

    With g the gradient at the start d, and m the momentum: the adversarial image is one step along
    sign(g) from d; m becomes decay m + g / |g|_1; and the next attack on this image starts one step
    along sign(m) from d. All steps are of length epsilon and end inside the ball.

    As in the authors' code (FGSM_MEP.py of github.com/jiaxiaojunQAQ/FGSM-PGI), first starts are
    random corners of the ball. Unlike there, the memory of an image is cropped and mirrored with
    the image, so that a perturbation meets the pixels it was made for, and pixels outside the crop
    keep theirs; gradients are normalised by image, not by batch; the memory is not reset every 40
    epochs; starts are clipped to the pixel box; and the attack climbs the plain cross-entropy,
    theirs the smoothed one (they train with 0.44 of label smoothing). For the L-inf ball.

    Attributes:
        weight: of the distance between the answers at the start and the end of the attack.
        decay: of the momentum, in [0, 1): the paper's mu.
    """

    name: str = "fgsm-mep"
    weight: float = 10.0
    decay: float = 0.3

    @property
    def passes(self) -> float:
        """One for the attack, two to learn from its start and its end."""
        return 3.0

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Prior:
        """See `Defense`: two bytes a pixel and channel, 301 MB for CIFAR-10 on every device."""
        corners = jax.random.bernoulli(key, shape=(count, *shape))
        start = jnp.where(corners, jnp.int8(LEVELS), jnp.int8(-LEVELS))
        return Prior(start, jnp.zeros((count, *shape), jnp.int8))

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """See `Defense`; the reference is the start."""
        images, labels, threat, _, memory, *_ = batch
        level = threat.epsilon / LEVELS
        start = clip_to_box(images + level * memory.start)
        gradient = input_gradient(logits_fn, start, labels)
        size = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        before = jnp.sign(memory.momentum) * jnp.square(memory.momentum / ROOTS)
        momentum = self.decay * before + gradient / jnp.where(size > 0, size, 1.0)
        following = step(threat, start, images, momentum, 1.0) - images
        roots = jnp.sign(momentum) * ROOTS * jnp.sqrt(jnp.abs(momentum))
        prior = Prior(jnp.rint(following / level), jnp.rint(jnp.clip(roots, -LEVELS, LEVELS)))
        return Perturbed(step(threat, start, images, gradient, 1.0), start, prior)

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See `consistent`."""
        return consistent(forward, batch, perturbed, self.weight)
