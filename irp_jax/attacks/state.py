"""The state of an evaluation: in memory, in a file, and under one attack."""

import dataclasses
import hashlib
import zipfile
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irp_jax import files
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.trials import Outcome
from irp_jax.errors import UserError


class Answers(NamedTuple):
    """What tells one network from another.

    Attributes:
        logits: (N, K) of the natural images.
        gradients: (B, H, W, C), of the margin of the first few. Two networks may answer alike and
            differ here, as one that quantises does from one whose gradient passes straight through.
    """

    logits: np.ndarray
    gradients: np.ndarray


def _close(saved: np.ndarray | None, answer: np.ndarray) -> bool:
    """Equal to the rounding of the network, which another batch size or device may move."""
    if saved is None or saved.shape != answer.shape:
        return False
    largest = float(np.abs(answer).max(initial=0.0))
    return np.allclose(saved, answer, rtol=0, atol=1e-3 * largest + 1e-30, equal_nan=True)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationState:
    """All that is needed to go on with an evaluation.

    Trials under way are not part of it: they start again, with the same draws.

    Attributes:
        is_robust: (N,) bool, images that no trial has broken.
        trials: (N,) int32, trials of the attack under way that each robust image has survived.
        broken_by: (N,) int32, the index of the attack in the list; -1 for natural errors and robust
            images.
        images: (N, H, W, C) float32, the adversarial image where one was found, else the natural
            image.
        finished: attacks completed.
        robust_after: how many images were robust after each of them.
        seconds: that each took, up to now.
        unverified: finds of each, up to now, that did not hold up when shown once more.
    """

    is_robust: np.ndarray
    trials: np.ndarray
    broken_by: np.ndarray
    images: np.ndarray
    finished: int = 0
    robust_after: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    unverified: tuple[int, ...] = ()


def at_first(images: np.ndarray, is_robust: np.ndarray) -> EvaluationState:
    """Before the first attack.

    Args:
        images: (N, H, W, C) float32.
        is_robust: (N,) bool, those classified correctly as they are.
    """
    count = len(images)
    return EvaluationState(
        is_robust=is_robust.copy(),
        trials=np.zeros(count, np.int32),
        broken_by=np.full(count, -1, np.int32),
        images=np.array(images, np.float32),
    )


class Progress:
    """The trials of one attack on every image: done, waiting, and what they found.

    Lives on the host and is changed in place.

    Attributes:
        waiting: images whose next trial has no slot yet, in order.
        is_robust: (N,) bool, images that no trial has broken.
        survived: (N,) int32, trials of this attack that each image has survived.
    """

    def __init__(self, attack: Attack, index: int, at: EvaluationState, classes: int) -> None:
        """Takes up an attack where it was left.

        Args:
            attack: under way.
            index: of the attack in the list.
            at: the state of the evaluation; its images are written over.
            classes: of the network, K.
        """
        self._attack, self._index, self._at = attack, index, at
        self._trials_each = attack.trials(classes)
        self.is_robust, self.survived = at.is_robust.copy(), at.trials.copy()
        self._broken_by, self._images = at.broken_by.copy(), at.images
        to_try = at.is_robust & (at.trials < self._trials_each)
        self.waiting = deque(int(row) for row in np.flatnonzero(to_try))
        self._unverified = at.unverified[index] if len(at.unverified) > index else 0
        # A network known to be random is asked once more, as published, and may then answer
        # otherwise: that casts no doubt on it.
        self._doubting = getattr(attack, "eot", 1) == 1
        self._doubts: Counter[int] = Counter()  # of trials under way, by image

    def is_over(self, row: int, found: Outcome) -> bool:
        """Records the outcome of a trial, unless it should go on.

        Args:
            row: the image.
            found: its outcome, no leading axis.

        Returns:
            False where a find does not hold up and there are steps left to look for another.
        """
        doubted = self._doubting and bool(found.claimed and not found.confirmed)
        self._doubts[row] += doubted
        if doubted and found.steps < self._attack.steps:
            return False
        if found.confirmed:
            self.is_robust[row], self._broken_by[row] = False, self._index
            self._images[row] = found.image
        else:
            self.survived[row] += 1
            if self.survived[row] < self._trials_each:
                self.waiting.appendleft(row)
        self._unverified += self._doubts.pop(row)
        return True

    @property
    def steps_left(self) -> int:
        """Of all trials to come, as far as is known; those under way count whole."""
        return int(self._trials_left.sum()) * self._attack.steps

    @property
    def longest_left(self) -> int:
        """Steps of the trials that the image with most of them has to come."""
        return int(self._trials_left.max(initial=0)) * self._attack.steps

    @property
    def _trials_left(self) -> np.ndarray:
        return self._trials_each - self.survived[self.is_robust]

    def state(self) -> EvaluationState:
        """The state of the evaluation now."""
        return dataclasses.replace(
            self._at, is_robust=self.is_robust, trials=self.survived, broken_by=self._broken_by,
            images=self._images, unverified=(*self._at.unverified[: self._index], self._unverified),
        )  # fmt: skip


def identity(images: np.ndarray, labels: np.ndarray, settings: Sequence[Any]) -> str:
    """A digest of what makes two evaluations of one network the same.

    Args:
        images: (N, H, W, C) float32.
        labels: (N,) int32.
        settings: dataclasses (attacks, the threat) and what else matters, such as the seed.
    """
    facts = [_facts(setting) for setting in settings]
    digest = hashlib.sha256(repr(facts).encode())
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _facts(value: Any) -> Any:
    """What a setting consists of, the same in every process: functions by their names.

    Raises:
        UserError: a function has no name of its own, by which to know it again.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: _facts(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value).__qualname__, fields
    if callable(value):
        name = getattr(value, "__qualname__", "")
        if not name or "<" in name:
            raise UserError(
                f"{value!r} has no name that a state file could know it by: define it at the top "
                "of a module, or leave out state_file"
            )
        return value.__module__, name
    return value


def write(path: Path, at: EvaluationState, name: str, answers: Answers) -> None:
    """Writes the file whole or not at all.

    Args:
        path: .npz file.
        at: the state.
        name: the evaluation's `identity`.
        answers: by which the network is known again.

    Raises:
        UserError: it cannot be written.
    """
    arrays = {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
    arrays |= {
        "robust_after": np.array(at.robust_after, np.int64),
        "seconds": np.array(at.seconds, np.float64),
        "unverified": np.array(at.unverified, np.int64),
    }
    arrays |= {"identity": np.array(name), **answers._asdict()}
    files.write_whole(path, lambda file: np.savez(file, **arrays))


def read(path: Path, name: str, answers: Answers) -> EvaluationState | None:
    """The state of the evaluation of that `identity` and network; None where there is no file.

    Raises:
        UserError: the file is damaged, or of another evaluation.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {key: saved[key] for key in saved.files}
        found = str(arrays.pop("identity"))
        at = EvaluationState(
            is_robust=arrays["is_robust"],
            trials=arrays["trials"],
            broken_by=arrays["broken_by"],
            images=arrays["images"],
            finished=int(arrays["finished"]),
            robust_after=tuple(int(count) for count in arrays["robust_after"]),
            seconds=tuple(float(time) for time in arrays["seconds"]),
            unverified=tuple(int(count) for count in arrays["unverified"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): remove it to start anew") from error
    alike = all(_close(arrays.get(part), answer) for part, answer in answers._asdict().items())
    if found != name or not alike:
        raise UserError(
            f"{path} belongs to an evaluation with other images, attacks or another network: "
            "remove it, or choose another file"
        )
    return at
