"""Plain training, and what the defences have in common."""

import dataclasses
from typing import Any

import jax

from irp_jax.attacks import LogitsFn, Threat
from irp_jax.training.defenses.defense import Forward, Perturbed, Trained
from irp_jax.training.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean:
    """No attack: cross-entropy on the images as they are."""

    name: str = "none"

    @property
    def passes(self) -> float:
        """See `Defense`."""
        return 1.0

    def memory(self, key: jax.Array, count: int, shape: tuple[int, int, int]) -> Any:
        """Nothing is remembered."""
        return None

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        memory: Any,
    ) -> Perturbed:
        """The images themselves."""
        return Perturbed(images)

    def loss(
        self,
        forward: Forward,
        images: jax.Array,
        labels: jax.Array,
        perturbed: Perturbed,
        *,
        smoothing: float,
    ) -> tuple[jax.Array, Trained]:
        """Cross-entropy on the adversarial images."""
        logits, batch_stats = forward(perturbed.adversarial)
        return cross_entropy(logits, labels, smoothing), Trained(logits, batch_stats)
