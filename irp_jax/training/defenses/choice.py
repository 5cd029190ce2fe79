"""The choice of a defense, in the form that is saved and reported."""

from typing import NamedTuple

MANY_STEPS = ("pgd", "trades")
"""Defenses with a variable number of gradient steps."""


class Choice(NamedTuple):
    """A defense by its name.

    Attributes:
        name: in `DEFENSES`.
        steps: gradient steps of the defenses in `MANY_STEPS`; the others ignore it.
    """

    name: str
    steps: int

    def __str__(self) -> str:
        return f"{self.name}, {self.steps} steps" if self.name in MANY_STEPS else self.name

    @property
    def stronger(self) -> "Choice | None":
        """The defense to use after this one has failed; None if there is no stronger one.

        It is PGD of three steps, to which a network can hardly overfit, then of ten. It is not
        N-FGSM after FGSM, although that costs the same: at a large radius its noise, of twice the
        radius, hides the content of the images. For no defense it is None, because none was wanted.
        """
        if self.name == "none":
            return None
        if self.name in MANY_STEPS:
            return Choice(self.name, 10) if self.steps < 10 else None
        return Choice("pgd", 3)
