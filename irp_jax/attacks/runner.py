"""Runs attacks one after another on the images that are still robust, in batches of fixed sizes.

A batch is a row of *slots*. Each slot holds one trial of one image. When the trial ends, the slot
goes to the image's next trial or to the next image. An image with an adversarial example is not
attacked again. No batch waits for its slowest image, and nothing is compiled twice. When half of a
batch is no longer needed and much work is left, the remaining trials move into a smaller batch.

The trials of an image follow one another and stop at the first that succeeds. So the result for an
image depends on the image, its label and the seed alone, not on the batch that it is part of.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax.attacks import trials
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.inputs import as_network
from irp_jax.attacks.losses import LogitsFn
from irp_jax.attacks.state import EvaluationState, Progress
from irp_jax.attacks.threat import Threat
from irp_jax.attacks.trials import FREE, Slots

WORTHWHILE = 2**19
"""Pixels times steps that a smaller batch must save on a CPU: about 50 images of 32 x 32 in ten
steps. That takes a small network seconds on a few cores, as long as the compilation."""
FASTER = 2**11
"""The factor for a GPU or TPU. An H200 trained ResNet20 at 42,000 images a second with two passes
each, which is 2**30 pixels in 12 seconds, and compiled its step in 40."""
REFILL = 4
"""Outcomes are looked at once one trial in four is over, and slots are filled once one in four is
free. Either costs the whole batch a pass."""
LONGEST = 50
"""Steps between two looks of the host, at most."""
SAVE_EVERY = 30.0
"""Seconds between two writes of the state, at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that are called while an evaluation runs.

    Attributes:
        begin: called as an attack starts, with its name and the number of images still robust.
        progress: called now and then during an attack, with the steps done, the steps in all as
            far as is known, and the number of images still robust.
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
        logits: (N, K) of the natural images, by which targets are chosen.
        at: the state to start from; its arrays are written over.
        list_of_attacks: in order, usually the cheapest first; names must differ.
        threat: the ball.
        seed: of every draw.
        batch_size: number of slots, a multiple of the number of devices.
        mesh: devices over whose axis "data" the slots are split; one device if None.
        callbacks: called as it goes.
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
                f"{at.unverified[index]} finds of {attack.name} did not hold up when shown once "
                "more, and were not counted: the network may be random, or compute with too few "
                "digits"
            )
    return at


def _ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, K) int32: the label, then the other classes by descending logit."""
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
    progress = Progress(attack, index, at, classes=slots.order.shape[1])
    held = np.full(slots.fitting(len(progress.waiting)), FREE)
    batch: trials.Trials | None = None
    began = saved = time.perf_counter()
    done, chunk = 0, 1
    while progress.waiting or (held != FREE).any():
        filled = _to_fill(held, len(progress.waiting))
        if len(filled):
            held[filled] = [progress.waiting.popleft() for _ in filled]
            batch = slots.fill(network, attack, batch, held, filled, progress.survived)
            chunk = 1
        assert batch is not None
        done += chunk * int(np.asarray(batch.running).sum())
        batch = trials.advance(network, attack, batch, chunk)
        # Few steps at first, when most trials succeed; then many, to seldom wait for the host.
        chunk = min(2 * chunk, max(1, min(attack.steps // 20, LONGEST)))
        over = (held != FREE) & ~np.asarray(batch.running)
        if over.sum() >= max(1, (held != FREE).sum() // REFILL):
            found = jax.device_get(trials.outcome(network, batch))
            batch = _settle(attack, batch, held, np.flatnonzero(over), found, progress)
            batch, held = _moved(batch, held, found.steps, progress, slots)
        callbacks.progress(done, done + progress.steps_left, int(progress.is_robust.sum()))
        now = time.perf_counter()
        if now - saved > SAVE_EVERY:
            saved = now
            seconds = (*at.seconds[:index], spent + now - began)
            save(dataclasses.replace(progress.state(), seconds=seconds))
    return progress.state()


def _to_fill(held: np.ndarray, waiting: int) -> np.ndarray:
    """The free slots to start trials in now; none while they are few."""
    free = np.flatnonzero(held == FREE)[:waiting]
    return free if len(free) >= min(waiting, len(held) // REFILL) else free[:0]


def _settle(
    attack: Attack,
    batch: trials.Trials,
    held: np.ndarray,
    over: np.ndarray,
    found: trials.Outcome,
    progress: Progress,
) -> trials.Trials:
    """Records the trials in the slots `over` and frees those whose trial shall not go on."""
    doubtful = np.zeros(len(held), bool)
    for slot in over:
        if progress.is_over(int(held[slot]), trials.Outcome(*(part[slot] for part in found))):
            held[slot] = FREE
        else:
            doubtful[slot] = True
    if not doubtful.any():
        return batch
    return trials.with_threat(trials.go_on(attack, batch, doubtful), batch.problem.threat)


def _moved(
    batch: trials.Trials, held: np.ndarray, taken: np.ndarray, progress: Progress, slots: Slots
) -> tuple[trials.Trials, np.ndarray]:
    """The batch and what it holds, in half as many slots or fewer if that saves enough."""
    in_use = held != FREE
    size = slots.fitting(len(progress.waiting) + int(in_use.sum()))
    ahead = progress.longest_left - (int(taken[in_use].min()) if in_use.any() else 0)
    saved = (len(held) - size) * ahead * math.prod(slots.images.shape[1:3])
    worthwhile = WORTHWHILE * (1 if jax.default_backend() == "cpu" else FASTER)
    if size <= len(held) // 2 and saved >= worthwhile:
        return slots.gather(batch, held, size)
    return batch, held
