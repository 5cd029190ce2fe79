"""Attacks one after another on the images still standing, in full batches of fixed sizes.

A batch is a row of *places*. Each holds one run of one image; when the run ends, the place goes to
the image's next run or to the next image. An image that has fallen is never attacked again, no
batch waits for its slowest image, and nothing is compiled twice. An attack's batch is as large as
fills it evenly from beginning to end; when half of it is no longer needed and much is still to do,
the survivors move into a smaller one.

An image's runs follow one another and stop at the first that makes it fall. So what is found for
it depends on the image, its label and the seed alone, not on the batch it travels in.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax.attacks import runs
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.inputs import as_network
from irp_jax.attacks.losses import LogitsFn
from irp_jax.attacks.places import FREE, Places
from irp_jax.attacks.standings import Standings
from irp_jax.attacks.tally import Tally
from irp_jax.attacks.threat import Threat

WORTHWHILE = 2**19
"""Pixels times steps that a smaller batch has to spare, about 50 images of 32 x 32 in ten steps:
seconds of a small network on a few cores, which is what its compilation takes."""
FASTER = 2**11
"""How much more a GPU or TPU does meanwhile: an H200 trained ResNet20 at 42,000 images a second,
two passes each, which is 2**30 pixels in 12 seconds, and compiled its step in 40."""
REFILL = 4
"""What was found is looked at once one run in so many is over, and a batch filled up once one place
in so many is free: either costs all of them a pass."""
LONGEST = 50
"""Steps taken before the host looks what has fallen, at most."""
SAVE_EVERY = 30.0
"""Seconds between savings, at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """What a caller may want to be told of a campaign under way.

    Attributes:
        begin: called as an attack starts, with its name and the number of images standing.
        progress: (steps of runs done, in all as far as is known, images standing), now and then
            during an attack.
        warn: told in one line of anything that casts doubt on the result.
    """

    begin: Callable[[str, int], None] = lambda name, standing: None
    progress: Callable[[int, int, int], None] = lambda done, total, standing: None
    warn: Callable[[str], None] = lambda message: None


def campaign(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    at: Standings,
    list_of_attacks: Sequence[Attack],
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    watch: Watch | None = None,
    save: Callable[[Standings], None] = lambda standings: None,
) -> Standings:
    """Runs each attack over the images that stand after the ones before.

    Args:
        logits_fn: the network. A `jax.tree_util.Partial` of a function and its variables is
            compiled once for all variables of the same shapes.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        logits: (N, K) of the clean images, by which targets are chosen.
        at: where the campaign stands; its arrays are written over.
        list_of_attacks: in order, usually the cheapest first; names must differ.
        threat: the ball.
        seed: of every draw.
        batch_size: places, a multiple of the number of devices.
        mesh: devices over whose axis "data" the places are split; one device if None.
        watch: told of what happens.
        save: called with the standings every `SAVE_EVERY` seconds and after every attack.

    Returns:
        The final standings. They are the same for every batch size, number of devices and
        interruption, to the rounding of the network.
    """
    watch = watch or Watch()
    order = _ranking(logits, labels)
    places = Places(images, labels, order, threat, seed, batch_size, mesh)
    network = as_network(logits_fn)
    for index, attack in enumerate(list_of_attacks):
        if index >= at.finished:
            began = time.perf_counter()
            spent = at.seconds[index] if len(at.seconds) > index else 0.0
            watch.begin(attack.name, int(at.standing.sum()))
            at = _one_attack(network, attack, index, places, at, watch, save, spent)
            taken = (*at.seconds[:index], spent + time.perf_counter() - began)
            at = dataclasses.replace(
                at, finished=index + 1, runs=np.zeros_like(at.runs), seconds=taken,
                standing_after=(*at.standing_after, int(at.standing.sum())),
            )  # fmt: skip
            save(at)
        if at.unverified[index]:
            watch.warn(
                f"{at.unverified[index]} finds of {attack.name} did not hold up when shown once "
                "more, and were not counted: the network may be random, or compute with too few "
                "digits"
            )
    return at


def _ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, K) int32: the label, then the other classes by falling logit."""
    last = logits.astype(np.float64)
    last[np.arange(len(labels)), labels] = np.inf
    return np.argsort(-last, axis=-1, kind="stable").astype(np.int32)


def _one_attack(
    network: Partial,
    attack: Attack,
    index: int,
    places: Places,
    at: Standings,
    watch: Watch,
    save: Callable[[Standings], None],
    spent: float,
) -> Standings:
    tally = Tally(attack, index, at, classes=places.order.shape[1])
    held = np.full(places.fitting(len(tally.waiting)), FREE)
    batch: runs.Batch | None = None
    began = saved = time.perf_counter()
    done, chunk = 0, 1
    while tally.waiting or (held != FREE).any():
        filled = _to_fill(held, len(tally.waiting))
        if len(filled):
            held[filled] = [tally.waiting.popleft() for _ in filled]
            batch = places.fill(network, attack, batch, held, filled, tally.survived)
            chunk = 1
        assert batch is not None
        done += chunk * int(np.asarray(batch.running).sum())
        batch = runs.advance(network, attack, batch, chunk)
        # Few steps at first, when most images fall; then many, to seldom wait for the host.
        chunk = min(2 * chunk, max(1, min(attack.steps // 20, LONGEST)))
        over = (held != FREE) & ~np.asarray(batch.running)
        if over.sum() >= max(1, (held != FREE).sum() // REFILL):
            found = jax.device_get(runs.outcome(network, batch))
            batch = _settle(attack, batch, held, np.flatnonzero(over), found, tally)
            batch, held = _moved(batch, held, found.steps, tally, places)
        watch.progress(done, done + tally.steps_left, int(tally.standing.sum()))
        now = time.perf_counter()
        if now - saved > SAVE_EVERY:
            saved = now
            seconds = (*at.seconds[:index], spent + now - began)
            save(dataclasses.replace(tally.standings(), seconds=seconds))
    return tally.standings()


def _to_fill(held: np.ndarray, waiting: int) -> np.ndarray:
    """The free places to start runs in now: none as long as they are few."""
    free = np.flatnonzero(held == FREE)[:waiting]
    return free if len(free) >= min(waiting, len(held) // REFILL) else free[:0]


def _settle(
    attack: Attack,
    batch: runs.Batch,
    held: np.ndarray,
    over: np.ndarray,
    found: runs.Outcome,
    tally: Tally,
) -> runs.Batch:
    """Books the runs in the places `over` and frees these, but for runs that should go on."""
    doubtful = np.zeros(len(held), bool)
    for place in over:
        if tally.is_over(int(held[place]), runs.Outcome(*(part[place] for part in found))):
            held[place] = FREE
        else:
            doubtful[place] = True
    if not doubtful.any():
        return batch
    return runs.with_threat(runs.go_on(attack, batch, doubtful), batch.problem.threat)


def _moved(
    batch: runs.Batch, held: np.ndarray, taken: np.ndarray, tally: Tally, places: Places
) -> tuple[runs.Batch, np.ndarray]:
    """The batch and what it holds, in half as many places or fewer where that is worthwhile."""
    in_use = held != FREE
    size = places.fitting(len(tally.waiting) + int(in_use.sum()))
    ahead = tally.longest_left - (int(taken[in_use].min()) if in_use.any() else 0)
    spared = (len(held) - size) * ahead * math.prod(places.images.shape[1:3])
    worthwhile = WORTHWHILE * (1 if jax.default_backend() == "cpu" else FASTER)
    if size <= len(held) // 2 and spared >= worthwhile:
        return places.gather(batch, held, size)
    return batch, held
