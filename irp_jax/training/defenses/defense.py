"""The interface of a defense: it perturbs a batch, and computes a loss on the result."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from irp_jax.attacks import LogitsFn, Threat
from irp_jax.training.losses import mean_cross_entropy, soft_targets

Forward = Callable[[jax.Array], tuple[jax.Array, Any]]
"""The network in training mode with given weights: images (N, H, W, C) -> logits (N, K), new
running statistics."""


class Batch(NamedTuple):
    """The data of a training step.

    Attributes:
        images: (N, H, W, C) float32 in [0, 1], augmented.
        labels: (N,) int32.
        threat: the ball of allowed perturbations.
        key: of this step.
        memory: of these images: every leaf (N, H, W, C) float32, cropped and mirrored like the
            images.
        smoothing: probability mass taken from the label, in [0, 1).
        taught: (N, K) float32, a teacher's probabilities; None without a teacher.
        teacher_weight: share of the teacher's output in the target.
        step: () int32, steps taken since the start of the run.
        done: () float32, fraction of training completed, in [0, 1).
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
        """Returns the targets, in the shape of the logits: see `losses.soft_targets`."""
        return soft_targets(
            self.labels, logits.shape[-1], self.smoothing, self.taught, self.teacher_weight
        )


class Perturbed(NamedTuple):
    """The result of an attack on a batch. No gradient flows through it.

    Attributes:
        adversarial: (N, H, W, C) float32 in [0, 1], the end of the attack.
        reference: other data that the defense's loss needs; None if it needs none.
        memory: new memory of these images, in the structure of the old one.
    """

    adversarial: jax.Array
    reference: Any = None
    memory: Any = None


class Trained(NamedTuple):
    """The network's result for the batch that it learns from.

    Attributes:
        logits: (N, K), of the adversarial images.
        batch_stats: running statistics after this batch. The attack does not update them. In the
            authors' codes of one-step defenses it does, so about half of their running statistics
            are of the attack's start.
    """

    logits: jax.Array
    batch_stats: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense(abc.ABC):
    """A defense. It is frozen, so that it can be a static argument of a compiled step.

    Attributes:
        name: on the command line.
    """

    name: str

    @property
    @abc.abstractmethod
    def passes(self) -> float:
        """Cost: pairs of a forward and a backward pass per image and step."""

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Any:
        """Returns the initial memory of all training images; here None.

        Args:
            key: of the run.
            count: number of training images, M.
            shape: (H, W, C) of an image.

        Returns:
            A pytree of integer arrays (M, H, W, C), of the smallest possible dtypes, or None.
        """
        return None

    @abc.abstractmethod
    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks a batch through the present network.

        Args:
            logits_fn: the network in training mode: images (N, H, W, C) -> logits (N, K). Its norms
                use the statistics of the whole batch.
            batch: to be attacked.
        """

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """Returns the loss to minimise, () float32, and the network's result for the batch.

        The default is the cross-entropy of the adversarial images.

        Args:
            forward: the network, differentiable in its weights and masks.
            batch: as given to `perturb`.
            perturbed: the result of `perturb`.
        """
        logits, batch_stats = forward(perturbed.adversarial)
        return mean_cross_entropy(logits, batch.targets(logits)), Trained(logits, batch_stats)
