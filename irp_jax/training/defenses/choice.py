"""Which defence a run trains with, as it is named, saved and reported."""

from typing import NamedTuple


class Choice(NamedTuple):
    """A defence by its name.

    Attributes:
        name: in `DEFENSES`.
        steps: gradient steps of those that take many; the others ignore it.
    """

    name: str
    steps: int

    def __str__(self) -> str:
        return f"{self.name}, {self.steps} steps" if self.name in ("pgd", "trades") else self.name

    @property
    def stronger(self) -> "Choice | None":
        """What to go on with when this one has failed; None where there is nothing stronger.

        N-FGSM after attacks that start closer to the image, for it costs the same; after everything
        else of one step, three steps, which have to be fooled all at once; then ten. Nothing after
        no defence: none was wanted.
        """
        if self.name == "none":
            return None
        if self.name in ("fgsm", "fgsm-rs"):
            return Choice("n-fgsm", self.steps)
        if self.name in ("pgd", "trades"):
            return Choice(self.name, 10) if self.steps < 10 else None
        return Choice("pgd", 3)
