"""What every defense has: a way to perturb a batch, and a loss to descend on what comes out."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from irp_jax.attacks import LogitsFn, Threat
from irp_jax.training.losses import cross_entropy, soft_targets

Forward = Callable[[jax.Array], tuple[jax.Array, Any]]
"""The network in training mode, weights given: images (N, H, W, C) -> logits (N, K), its new
running statistics."""


class Batch(NamedTuple):
    """What a step learns from.

    Attributes:
        images: (N, H, W, C) float32 in [0, 1], augmented.
        labels: (N,) int32.
        threat: the ball to be robust in.
        key: of this step.
        memory: of these images: every leaf (N, H, W, C) float32, cropped and mirrored as they are.
        smoothing: probability mass taken from the label, in [0, 1).
        taught: (N, K) float32, a teacher's probabilities; None without a teacher.
        teacher_weight: share of the target that is the teacher's.
        step: () int32, steps taken since the start of the run.
        done: () float32, the share of training that is over, in [0, 1).
    """

    images: jax.Array
    labels: jax.Array
    threat: Threat
    key: jax.Array
    memory: Any = None
    smoothing: float = 0.0
    taught: jax.Array | None = None
    teacher_weight: float = 0.0
    step: Any = 0
    done: Any = 0.0

    def targets(self, logits: jax.Array) -> jax.Array:
        """What the network is to answer, of the shape of its logits: see `losses.soft_targets`."""
        return soft_targets(
            self.labels, logits.shape[-1], self.smoothing, self.taught, self.teacher_weight
        )


class Perturbed(NamedTuple):
    """A batch under attack; no gradient flows through it.

    Attributes:
        adversarial: (N, H, W, C) float32 in [0, 1], where the attack ended.
        reference: what else this defense's loss needs; None where that is nothing.
        memory: what is to be remembered of these images, in the structure it was given.
    """

    adversarial: jax.Array
    reference: Any = None
    memory: Any = None


class Trained(NamedTuple):
    """What the network made of a batch it learns from.

    Attributes:
        logits: (N, K), of the adversarial images.
        batch_stats: running statistics after it. What the attack makes of the batch is not part of
            them; the authors' codes of one-step defenses run it through the norms in training mode,
            so that about half of their running statistics is of its start.
    """

    logits: jax.Array
    batch_stats: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense(abc.ABC):
    """How a network is hardened; frozen, so that it can be compiled in.

    Attributes:
        name: what it is called on the command line.
    """

    name: str

    @property
    @abc.abstractmethod
    def passes(self) -> float:
        """Forward and backward passes per image and step, in pairs: what it costs."""

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Any:
        """What is remembered of every training image at the start of a run; here, nothing.

        Args:
            key: of the run.
            count: training images, M.
            shape: (H, W, C) of an image.

        Returns:
            A pytree of integer arrays (M, H, W, C), of dtypes as small as they can be, or None.
        """
        return None

    @abc.abstractmethod
    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks a batch through the network as it is.

        Args:
            logits_fn: the network in training mode: images (N, H, W, C) -> logits (N, K). Its
                norms see the batch as a whole.
            batch: to be attacked.
        """

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """What is descended, () float32, and what the network made of the batch; here,
        cross-entropy on the adversarial images.

        Args:
            forward: the network, differentiable in its weights and masks.
            batch: as given to `perturb`.
            perturbed: what that returned.
        """
        logits, batch_stats = forward(perturbed.adversarial)
        return cross_entropy(logits, batch.targets(logits)), Trained(logits, batch_stats)
