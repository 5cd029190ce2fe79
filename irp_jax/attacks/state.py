"""The state of an evaluation: in memory, in a file, and under one attack."""

import dataclasses
import hashlib
import io
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irp_jax import files, hosts
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.trials import Outcome
from irp_jax.errors import DAMAGED_NPZ, UserError


class Answers(NamedTuple):
    """The data by which a state file recognises its network.

    Attributes:
        logits: (N, K) of the natural images.
        gradients: (B, H, W, C), of the margin of the first few. Two networks can have equal logits
            and different gradients: for instance one that quantises, with and without a
            straight-through gradient.
    """

    logits: np.ndarray
    gradients: np.ndarray


def _close(saved: np.ndarray | None, answer: np.ndarray) -> bool:
    """Returns whether two arrays are equal to the rounding of the network.

    The rounding may depend on the batch size and the device.
    """
    if saved is None or saved.shape != answer.shape:
        return False
    largest = float(np.abs(answer).max(initial=0.0))
    return np.allclose(saved, answer, rtol=0, atol=1e-3 * largest + 1e-30, equal_nan=True)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationState:
    """All that is needed to continue an evaluation.

    Running trials are not part of it. They start again with the same random numbers.

    Attributes:
        is_robust: (N,) bool, images that no trial has broken.
        trials: (N,) int32, trials of the current attack that each robust image has survived.
        broken_by: (N,) int32, the index of the attack in the list; -1 for natural errors and robust
            images.
        images: (N, H, W, C) float32, the adversarial image where one was found, else the natural
            image.
        finished: number of attacks completed.
        robust_after: number of robust images after each completed attack.
        seconds: time of each attack so far.
        unverified: number of finds of each attack so far that a second pass did not confirm.
    """

    is_robust: np.ndarray
    trials: np.ndarray
    broken_by: np.ndarray
    images: np.ndarray
    finished: int = 0
    robust_after: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    unverified: tuple[int, ...] = ()


def initial(images: np.ndarray, is_robust: np.ndarray) -> EvaluationState:
    """Returns the state before the first attack.

    Args:
        images: (N, H, W, C) float32.
        is_robust: (N,) bool, images classified correctly without an attack.
    """
    count = len(images)
    return EvaluationState(
        is_robust=is_robust.copy(),
        trials=np.zeros(count, np.int32),
        broken_by=np.full(count, -1, np.int32),
        images=np.array(images, np.float32),
    )


class AttackProgress:
    """The trials of one attack on every image: finished, waiting, and their results.

    It is on the host and is changed in place.

    Attributes:
        waiting: images whose next trial has no slot yet, in order.
        is_robust: (N,) bool, images that no trial has broken.
        survived: (N,) int32, trials of this attack that each image has survived.
    """

    def __init__(self, attack: Attack, index: int, at: EvaluationState, classes: int) -> None:
        """Continues an attack from a state.

        Args:
            attack: the attack.
            index: position of the attack in the list.
            at: the state of the evaluation; its images are overwritten.
            classes: number of classes of the network, K.
        """
        self._attack, self._index, self._at = attack, index, at
        self._trials_each = attack.trials(classes)
        self.is_robust, self.survived = at.is_robust.copy(), at.trials.copy()
        self._broken_by, self._images = at.broken_by.copy(), at.images
        to_try = at.is_robust & (at.trials < self._trials_each)
        self.waiting = deque(int(row) for row in np.flatnonzero(to_try))
        self._unverified = at.unverified[index] if len(at.unverified) > index else 0
        # With `eot` above 1 the network is known to be random. An unconfirmed find is then not
        # doubtful. As published, it ends its trial.
        self._doubting = getattr(attack, "eot", 1) == 1
        self._doubts: Counter[int] = Counter()  # of running trials, by image

    def is_over(self, row: int, found: Outcome) -> bool:
        """Records the outcome of a trial, unless the trial should continue.

        Args:
            row: the index of the image.
            found: the outcome, without a leading axis.

        Returns:
            False if the find was not confirmed and steps are left to search for another.
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
        """An estimate of the steps of all remaining trials; running trials count in full."""
        return int(self._trials_left.sum()) * self._attack.steps

    @property
    def longest_left(self) -> int:
        """Remaining steps of the image with the most remaining trials."""
        return int(self._trials_left.max(initial=0)) * self._attack.steps

    @property
    def _trials_left(self) -> np.ndarray:
        return self._trials_each - self.survived[self.is_robust]

    def state(self) -> EvaluationState:
        """Returns the current state of the evaluation."""
        return dataclasses.replace(
            self._at, is_robust=self.is_robust, trials=self.survived, broken_by=self._broken_by,
            images=self._images, unverified=(*self._at.unverified[: self._index], self._unverified),
        )  # fmt: skip


def identity(images: np.ndarray, labels: np.ndarray, settings: Sequence[Any]) -> str:
    """Returns a digest of images, labels and settings, to recognise an evaluation.

    Args:
        images: (N, H, W, C) float32.
        labels: (N,) int32.
        settings: dataclasses (attacks, the threat) and other values, such as the seed.
    """
    facts = [facts_of(setting) for setting in settings]
    digest = hashlib.sha256(repr(facts).encode())
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def facts_of(value: Any) -> Any:
    """Returns the contents of a setting, the same in every process; functions become names.

    Raises:
        UserError: a function has no name that identifies it.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: facts_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value).__qualname__, fields
    if callable(value):
        name = getattr(value, "__qualname__", "")
        if not name or "<" in name:
            raise UserError(
                f"{value!r} has no name to identify it in a state file: define it at the top level "
                "of a module, or leave out state_file"
            )
        return value.__module__, name
    return value


def write(path: Path, at: EvaluationState, name: str, answers: Answers) -> None:
    """Writes the state file completely or not at all.

    Args:
        path: .npz file.
        at: the state.
        name: the evaluation's `identity`.
        answers: the data that identify the network.

    Raises:
        UserError: the file cannot be written.
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
    """Reads the state of the evaluation with this `identity` and network; None without a file.

    Raises:
        UserError: the file is damaged, or belongs to another evaluation.
    """
    here = hosts.is_first() and path.exists()
    content = hosts.from_first(path.read_bytes() if here else b"")
    if not content:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
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
    except DAMAGED_NPZ as error:
        raise UserError(f"{path} is damaged ({error}): remove it to start again") from error
    alike = all(_close(arrays.get(part), answer) for part, answer in answers._asdict().items())
    if found != name or not alike:
        raise UserError(
            f"{path} belongs to an evaluation with other images, attacks or another network: "
            "remove it, or choose another file"
        )
    return at
