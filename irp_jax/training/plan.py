"""What is settled of a run before its first step."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """When things happen, and how much may be left.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: steps of one batch.
        segments: compiled calls an epoch is split into, all of the same number of steps, so that
            one program serves all and the progress bar moves.
        freeze_epoch: epochs completed when masks are frozen.
        stages: epochs completed when a stage begins, and with it a cycle of the learning rate.
        limit: budget in MACs or parameters.
        target: the budget as the user gave it: a fraction, or MACs or parameters.
        ratio: budget as a fraction of the dense cost.
        parent_epoch: epochs completed when the dense network becomes the teacher; None where it
            does not.
        reinit: whether the network starts from new weights when masks are frozen.
        epsilon_steps: steps in which the radius trained against grows to the full one; all before
            the second stage.
    """

    epochs: int
    steps_per_epoch: int
    segments: int
    freeze_epoch: int
    limit: int
    target: float
    ratio: float
    stages: tuple[int, ...] = (0,)
    parent_epoch: int | None = None
    reinit: bool = False
    epsilon_steps: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def freeze_step(self) -> int:
        """Steps taken when masks are frozen."""
        return self.freeze_epoch * self.steps_per_epoch
