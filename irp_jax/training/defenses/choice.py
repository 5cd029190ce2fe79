"""Which defense a run trains with, as it is named, saved and reported."""

from typing import NamedTuple

MANY_STEPS = ("pgd", "trades")
"""Defenses that take as many gradient steps as they are told to."""


class Choice(NamedTuple):
    """A defense by its name.

    Attributes:
        name: in `DEFENSES`.
        steps: gradient steps of those that take many; the others ignore it.
    """

    name: str
    steps: int

    def __str__(self) -> str:
        return f"{self.name}, {self.steps} steps" if self.name in MANY_STEPS else self.name

    @property
    def stronger(self) -> "Choice | None":
        """What to go on with when this one has failed; None where there is nothing stronger.

        Attacks of three steps, which have to be fooled all at once; then of ten. Not N-FGSM after
        FGSM, though it would cost the same: where the radius is large its noise, of twice the
        radius, hides what is to be learnt. Nothing after no defense: none was wanted.
        """
        if self.name == "none":
            return None
        if self.name in MANY_STEPS:
            return Choice(self.name, 10) if self.steps < 10 else None
        return Choice("pgd", 3)
