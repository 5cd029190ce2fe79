"""Training without a defense."""

import dataclasses

from irp_jax.attacks import LogitsFn
from irp_jax.training.defenses.defense import Batch, Defense, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Standard training: cross-entropy on natural images."""

    name: str = "none"

    @property
    def passes(self) -> float:
        """One pass to learn."""
        return 1.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Returns the images unchanged."""
        return Perturbed(batch.images)
