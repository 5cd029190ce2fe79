"""No defense at all."""

import dataclasses

from irp_jax.attacks import LogitsFn
from irp_jax.training.defenses.defense import Batch, Defense, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Plain training: cross-entropy on the images as they are."""

    name: str = "none"

    @property
    def passes(self) -> float:
        """One to learn from."""
        return 1.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """The images themselves."""
        return Perturbed(batch.images)
