"""Runs attacks one after another on the images that are still robust, in batches of fixed sizes.

A batch is a row of *slots*. Each slot holds one trial of one image. When the trial ends, the slot
goes to the image's next trial or to the next image. An image with an adversarial example is not
attacked again. No batch waits for its slowest image, and nothing is compiled twice. When half of a
batch is no longer needed and much work is left, the remaining trials move into a smaller batch.

The trials of an image follow one another and stop at the first that succeeds. So the result for an
image depends only on the image, its label, its index in the set and the seed, not on its batch.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import parallel
from irp_jax.attacks import trials
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.checks import as_network
from irp_jax.attacks.losses import LogitsFn
from irp_jax.attacks.state import AttackProgress, EvaluationState
from irp_jax.attacks.threat import Threat
from irp_jax.attacks.trials import FREE, Slots

WORTHWHILE = 2**19
"""Pixels times steps that a smaller batch must save on a CPU: about 50 images of 32 x 32 in ten
steps. That takes a small network seconds on a few cores, about as long as the compilation."""
FASTER = 2**11
"""Factor on `WORTHWHILE` for a GPU or TPU. An H200 trained ResNet20 at 42,000 images a second with
two passes each, which is 2**30 pixels in 12 seconds. It compiled the step in 40 seconds."""
REFILL = 4
"""Outcomes are read once one trial in four is over. Slots are filled once one in four is free. Each
takes a pass over the whole batch."""
LONGEST = 50
"""Maximum number of steps before the host checks which trials are over."""
SAVE_EVERY = 30.0
"""Minimum number of seconds between two writes of the state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that are called while an evaluation runs.

    Attributes:
        begin: called at the start of an attack, with its name and the number of robust images.
        progress: called repeatedly during an attack, with the number of steps done, an estimate of
            the total number of steps, and the number of images still robust.
        warn: called with one line for each reason to doubt the result.
    """

    begin: Callable[[str, int], None] = lambda name, robust: None
    progress: Callable[[int, int, int], None] = lambda done, total, robust: None
    warn: Callable[[str], None] = lambda message: None


def run_attacks(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    at: EvaluationState,
    list_of_attacks: Sequence[Attack],
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    callbacks: Callbacks | None = None,
    save: Callable[[EvaluationState], None] = lambda state: None,
) -> EvaluationState:
    """Runs each attack on the images that are robust to the attacks before it.

    Args:
        logits_fn: the network. A `jax.tree_util.Partial` of a function and its variables is
            compiled once for all variables of the same shapes.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        logits: (N, K) of the natural images. They determine the order of the targets.
        at: the state to start from; its arrays are overwritten.
        list_of_attacks: in order, usually the cheapest first; names must differ.
        threat: the ball.
        seed: seed of all random numbers.
        batch_size: number of slots, a multiple of the number of devices.
        mesh: devices over whose axis "data" the slots are split; one device if None.
        callbacks: called with progress and warnings.
        save: called with the state every `SAVE_EVERY` seconds and after every attack.

    Returns:
        The final state. It is the same for every batch size, number of devices and
        interruption, to the rounding of the network.
    """
    callbacks = callbacks or Callbacks()
    order = _ranking(logits, labels)
    slots = Slots(images, labels, order, threat, seed, batch_size, mesh)
    network = as_network(logits_fn)
    for index, attack in enumerate(list_of_attacks):
        if index >= at.finished:
            began = time.perf_counter()
            spent = at.seconds[index] if len(at.seconds) > index else 0.0
            callbacks.begin(attack.name, int(at.is_robust.sum()))
            at = _one_attack(network, attack, index, slots, at, callbacks, save, spent)
            taken = (*at.seconds[:index], spent + time.perf_counter() - began)
            at = dataclasses.replace(
                at, finished=index + 1, trials=np.zeros_like(at.trials), seconds=taken,
                robust_after=(*at.robust_after, int(at.is_robust.sum())),
            )  # fmt: skip
            save(at)
        if at.unverified[index]:
            callbacks.warn(
                f"{at.unverified[index]} finds of {attack.name} did not hold up in a second "
                "forward pass and were not counted: the network may draw random numbers or compute "
                "with too little precision"
            )
    return at


def _ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the label, then the other classes by descending logit, (N, K) int32."""
    last = logits.astype(np.float64)
    last[np.arange(len(labels)), labels] = np.inf
    return np.argsort(-last, axis=-1, kind="stable").astype(np.int32)


def _one_attack(
    network: Partial,
    attack: Attack,
    index: int,
    slots: Slots,
    at: EvaluationState,
    callbacks: Callbacks,
    save: Callable[[EvaluationState], None],
    spent: float,
) -> EvaluationState:
    progress = AttackProgress(attack, index, at, classes=slots.order.shape[1])
    held = np.full(slots.fitting(len(progress.waiting)), FREE)
    batch: trials.Trials | None = None
    began = saved = time.perf_counter()
    done, chunk = 0, 1
    while progress.waiting or (held != FREE).any():
        filled = _slots_to_fill(held, len(progress.waiting))
        if len(filled):
            held[filled] = [progress.waiting.popleft() for _ in filled]
            batch = slots.fill(network, attack, batch, held, filled, progress.survived)
            chunk = 1
        assert batch is not None
        done += chunk * int(parallel.fetch(batch.running).sum())
        batch = trials.advance(network, attack, batch, chunk)
        # Few steps at first, when most trials succeed. Then many, so that the host seldom waits.
        chunk = min(2 * chunk, max(1, min(attack.steps // 20, LONGEST)))
        over = (held != FREE) & ~parallel.fetch(batch.running)
        if over.sum() >= max(1, (held != FREE).sum() // REFILL):
            found = parallel.fetch(trials.outcome(network, batch))
            batch = _record_outcomes(attack, batch, held, np.flatnonzero(over), found, progress)
            batch, held = _shrink_batch(batch, held, found.steps, progress, slots)
        callbacks.progress(done, done + progress.steps_left, int(progress.is_robust.sum()))
        now = time.perf_counter()
        if now - saved > SAVE_EVERY:
            saved = now
            seconds = (*at.seconds[:index], spent + now - began)
            save(dataclasses.replace(progress.state(), seconds=seconds))
    return progress.state()


def _slots_to_fill(held: np.ndarray, waiting: int) -> np.ndarray:
    """Returns the free slots in which to start trials now; none while few slots are free."""
    free = np.flatnonzero(held == FREE)[:waiting]
    return free if len(free) >= min(waiting, len(held) // REFILL) else free[:0]


def _record_outcomes(
    attack: Attack,
    batch: trials.Trials,
    held: np.ndarray,
    over: np.ndarray,
    found: trials.Outcome,
    progress: AttackProgress,
) -> trials.Trials:
    """Records the trials in the slots `over` and frees the slots of those that do not continue."""
    doubtful = np.zeros(len(held), bool)
    for slot in over:
        if progress.is_over(int(held[slot]), trials.Outcome(*(part[slot] for part in found))):
            held[slot] = FREE
        else:
            doubtful[slot] = True
    if not doubtful.any():
        return batch
    return trials.with_threat(trials.go_on(attack, batch, doubtful), batch.problem.threat)


def _shrink_batch(
    batch: trials.Trials,
    held: np.ndarray,
    taken: np.ndarray,
    progress: AttackProgress,
    slots: Slots,
) -> tuple[trials.Trials, np.ndarray]:
    """Moves the trials to at most half as many slots, if that saves enough work.

    Returns the batch and the image in each slot.
    """
    in_use = held != FREE
    size = slots.fitting(len(progress.waiting) + int(in_use.sum()))
    ahead = progress.longest_left - (int(taken[in_use].min()) if in_use.any() else 0)
    saved = (len(held) - size) * ahead * math.prod(slots.images.shape[1:3])
    worthwhile = WORTHWHILE * (1 if jax.default_backend() == "cpu" else FASTER)
    if size <= len(held) // 2 and saved >= worthwhile:
        return slots.gather(batch, held, size)
    return batch, held
