"""FGSM training in which the attack on an image starts from earlier perturbations of the image."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, clip_to_box
from irp_jax.attacks.ascent import input_gradient, step
from irp_jax.training.defenses.consistency import consistent
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained

LEVELS = 127
"""A stored perturbation is a whole number of steps of epsilon / LEVELS. It is thus relative to the
radius, and grows with the radius during its warm-up."""

ROOTS = 16.0
"""A stored whole number n means the momentum sign(n) (n / ROOTS)^2, which is at most 63."""


class Prior(NamedTuple):
    """The memory of the training images, in the frame of the unaugmented image.

    Attributes:
        start: (M, H, W, C) int8, the perturbation that the next attack starts from, in units of
            epsilon / LEVELS.
        momentum: (M, H, W, C) int8, the running sum of the image's gradients, each divided by its
            mean absolute value. It is stored on a square-root scale (`ROOTS`), which is accurate
            enough, because only the sign of a sum is used.
    """

    start: jax.Array
    momentum: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mep(Defense):
    """FGSM-MEP: attacks start from the momentum of earlier perturbations (Jia et al. 2022).

    Let d be the start, g the gradient there, and m the momentum. The adversarial image is one step
    along sign(g) from d. Then m becomes decay m + g / mean(|g|), the paper's g / |g|_1 up to a
    constant factor. The next attack on this image starts one step along sign(m) from d. All steps
    have length epsilon and end inside the ball. It is for the L-inf ball.

    As in the authors' code (FGSM_MEP.py of github.com/jiaxiaojunQAQ/FGSM-PGI), the first starts are
    random corners of the ball. There are five differences. The memory of an image is cropped and
    mirrored with the image, so that a perturbation meets the pixels it was made for; pixels outside
    the crop keep theirs. Gradients are normalised for each image, not for the batch. The memory is
    not reset every 40 epochs. Starts are clipped to the pixel range. The attack uses the
    cross-entropy without label smoothing; theirs is smoothed (they train with a label smoothing of
    0.44).

    Attributes:
        weight: of the distance between the outputs at the start and the end of the attack.
        decay: of the momentum, in [0, 1): the paper's mu.
    """

    name: str = "fgsm-mep"
    weight: float = 10.0
    decay: float = 0.3

    @property
    def passes(self) -> float:
        """One pass for the attack, two to learn from its start and its end."""
        return 3.0

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Prior:
        """See `Defense`. Two bytes per pixel and channel: 301 MB for CIFAR-10 on each device."""
        corners = jax.random.bernoulli(key, shape=(count, *shape))
        start = jnp.where(corners, jnp.int8(LEVELS), jnp.int8(-LEVELS))
        return Prior(start, jnp.zeros((count, *shape), jnp.int8))

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by one step. The reference is the start of the attack."""
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
        """Returns the loss of `consistent`."""
        return consistent(forward, batch, perturbed, self.weight)
