"""What every defence has: a way to perturb a batch, and a loss to descend on what comes out."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from irp_jax.attacks import LogitsFn, Threat

Forward = Callable[[jax.Array], tuple[jax.Array, Any]]
"""The network in training mode, weights given: images (N, H, W, C) -> logits (N, K), its new
running statistics."""


class Perturbed(NamedTuple):
    """A batch under attack; no gradient flows through it.

    Attributes:
        adversarial: (N, H, W, C) float32 in [0, 1], where the attack ended.
        reference: what else this defence's loss needs; None where that is nothing.
        memory: what is to be remembered of these images, in the structure it was given.
    """

    adversarial: jax.Array
    reference: Any = None
    memory: Any = None


class Trained(NamedTuple):
    """What the network made of a batch it learns from.

    Attributes:
        logits: (N, K), of the adversarial images.
        batch_stats: running statistics after it.
    """

    logits: jax.Array
    batch_stats: Any


class Defense(Protocol):
    """How a network is hardened; a frozen dataclass, so that it can be compiled in.

    Attributes:
        name: what it is called on the command line.
        passes: forward and backward passes per image and step, in pairs: what it costs.
    """

    @property
    def name(self) -> str: ...

    @property
    def passes(self) -> float: ...

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Any:
        """What is remembered of every training image at the start of a run, None for nothing.

        Args:
            key: of the run.
            count: training images, M.
            shape: (H, W, C) of an image.

        Returns:
            A pytree of integer arrays (M, H, W, C), of dtypes as small as they can be.
        """
        ...

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        memory: Any,
    ) -> Perturbed:
        """Attacks a batch through the network as it is.

        Args:
            logits_fn: the network in training mode: images (N, H, W, C) -> logits (N, K). Its
                norms see the batch as a whole.
            images: (N, H, W, C) float32 in [0, 1], augmented.
            labels: (N,) int32.
            threat: the ball to be robust in.
            key: of this step.
            memory: of these images: every leaf (N, H, W, C) float32, cropped and mirrored as the
                images are.
        """
        ...

    def loss(
        self,
        forward: Forward,
        images: jax.Array,
        labels: jax.Array,
        perturbed: Perturbed,
        *,
        smoothing: float,
    ) -> tuple[jax.Array, Trained]:
        """What is descended, () float32, and what the network made of the batch.

        Args:
            forward: the network, differentiable in its weights and masks.
            images, labels: as for `perturb`.
            perturbed: what it returned.
            smoothing: probability mass taken from the label, in [0, 1).
        """
        ...
