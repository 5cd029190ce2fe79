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
import functools
import math
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import Partial

from irp_jax import parallel
from irp_jax.attacks import runs
from irp_jax.attacks.attack import Attack, Problem
from irp_jax.attacks.inputs import as_network
from irp_jax.attacks.losses import LogitsFn
from irp_jax.attacks.standings import Standings
from irp_jax.attacks.threat import Threat

GRAIN = 4
"""Batch sizes in use are multiples of the full one's quarter: each costs a compilation."""
SMALLEST = 128
"""Given fewer places than these, an attack has batches of one size only."""
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
    places = _Places(images, labels, order, threat, seed, batch_size, mesh)
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


class _Places(NamedTuple):
    """What runs are made from."""

    images: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    threat: Threat
    seed: int
    size: int
    mesh: Mesh | None

    @property
    def sharding(self) -> NamedSharding | None:
        return None if self.mesh is None else parallel.batch(self.mesh)

    def fitting(self, wanted: int) -> int:
        """Places for so many runs: of the sizes that need no more turns, the smallest."""
        if self.size < SMALLEST:
            return self.size
        devices = 1 if self.mesh is None else self.mesh.size
        grain = -(-self.size // (GRAIN * devices)) * devices
        turns = max(1, -(-wanted // self.size))
        return min(self.size, max(1, -(-wanted // (turns * grain))) * grain)

    def problem(self, attack: Attack, rows: np.ndarray, numbers: np.ndarray) -> Problem:
        """The runs `numbers` of the images `rows`, on the devices."""
        image, label, order, row, number = jax.device_put(
            (self.images[rows], self.labels[rows], self.order[rows], rows, numbers), self.sharding
        )
        salt = np.uint32(zlib.crc32(attack.name.encode()))
        key = jax.random.fold_in(jax.random.key(self.seed), salt)
        return Problem(image, label, order, number, runs.keys(key, row, number), self.threat)


def _ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, K) int32: the label, then the other classes by falling logit."""
    last = logits.astype(np.float64)
    last[np.arange(len(labels)), labels] = np.inf
    return np.argsort(-last, axis=-1, kind="stable").astype(np.int32)


def _one_attack(
    network: Partial,
    attack: Attack,
    index: int,
    places: _Places,
    at: Standings,
    watch: Watch,
    save: Callable[[Standings], None],
    spent: float,
) -> Standings:
    runs_each = attack.runs(places.order.shape[1])
    standing, survived = at.standing.copy(), at.runs.copy()
    felled_by, found = at.felled_by.copy(), at.images
    waiting = deque(int(row) for row in np.flatnonzero(standing) if survived[row] < runs_each)
    held = np.full(places.fitting(len(waiting)), -1)  # the image in each place, -1 where free
    batch: runs.Batch | None = None
    began = saved = time.perf_counter()
    done, chunk = 0, 1
    worthwhile = WORTHWHILE * (1 if jax.default_backend() == "cpu" else FASTER)
    unverified = at.unverified[index] if len(at.unverified) > index else 0
    # A network known to be random is asked once more, as published, and may then answer otherwise.
    insistent = getattr(attack, "eot", 1) == 1
    doubts: Counter[int] = Counter()  # finds of runs under way that did not hold up, by image

    def reached() -> Standings:
        return dataclasses.replace(
            at, standing=standing, felled_by=felled_by, images=found,
            unverified=(*at.unverified[:index], unverified),
        )  # fmt: skip

    while waiting or (held >= 0).any():
        free = np.flatnonzero(held < 0)
        if waiting and len(free) >= max(1, min(len(waiting), len(held) // REFILL)):
            filled = free[: len(waiting)]
            held[filled] = [waiting.popleft() for _ in filled]
            batch = _fill(network, attack, places, batch, held, filled, survived)
            chunk = 1
        assert batch is not None
        done += chunk * int(np.asarray(batch.running).sum())
        batch = runs.advance(network, attack, batch, chunk)
        # Few steps at first, when most images fall; then many, to seldom wait for the host.
        chunk = min(2 * chunk, max(1, min(attack.steps // 20, LONGEST)))
        running = np.asarray(batch.running)
        over = np.flatnonzero((held >= 0) & ~running)
        if len(over) and (len(over) >= (held >= 0).sum() // REFILL or not running.any()):
            claimed, confirmed, worst, taken = jax.device_get(runs.outcome(network, batch))
            doubtful = np.zeros(len(held), bool)
            for place in over:
                row = int(held[place])
                doubts[row] += int(insistent and claimed[place] and not confirmed[place])
                if confirmed[place]:
                    standing[row], felled_by[row], found[row] = False, index, worst[place]
                elif insistent and claimed[place] and taken[place] < attack.steps:
                    doubtful[place] = True
                    continue
                else:
                    survived[row] += 1
                    if survived[row] < runs_each:
                        waiting.appendleft(row)
                held[place] = -1
                unverified += doubts.pop(row)
            if doubtful.any():
                batch = runs.with_threat(runs.go_on(attack, batch, doubtful), places.threat)
            size = places.fitting(len(waiting) + int((held >= 0).sum()))
            ahead = int((runs_each - survived[standing]).max(initial=0)) * attack.steps
            if (held >= 0).any():
                ahead -= int(taken[held >= 0].min())
            spared = (len(held) - size) * ahead * math.prod(places.images.shape[1:3])
            if size <= len(held) // 2 and spared >= worthwhile:
                batch, held = _gather(batch, held, size, places.mesh)
        now = time.perf_counter()
        left = runs_each - survived[standing]
        watch.progress(done, done + int(left.sum()) * attack.steps, int(standing.sum()))
        if now - saved > SAVE_EVERY:
            saved = now
            seconds = (*at.seconds[:index], spent + now - began)
            save(dataclasses.replace(reached(), runs=survived, seconds=seconds))
    return reached()


def _fill(
    network: Partial,
    attack: Attack,
    places: _Places,
    batch: runs.Batch | None,
    held: np.ndarray,
    taken: np.ndarray,
    survived: np.ndarray,
) -> runs.Batch:
    """Starts a run in each of the places `taken`."""
    # Every place is given an image, for the sake of one shape; those not taken are put aside.
    rows = np.where(held >= 0, held, held[taken[0]]).astype(np.int32)
    fresh = np.zeros(len(held), bool)
    fresh[taken] = True
    problem = places.problem(attack, rows, survived[rows])
    if batch is None:
        shapes = jax.eval_shape(functools.partial(runs.start, network, attack), problem)
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.state)
        blank = jax.device_put(blank, places.sharding)
        batch = runs.Batch(problem, blank, jnp.zeros_like(problem.number), problem.number < 0)
    return runs.with_threat(runs.restart(network, attack, batch, problem, fresh), places.threat)


def _gather(
    batch: runs.Batch, held: np.ndarray, size: int, mesh: Mesh | None
) -> tuple[runs.Batch, np.ndarray]:
    """Moves the places in use to the front of a smaller batch."""
    rows = np.argsort(held < 0, kind="stable")[:size]
    smaller = runs.take(runs.without_threat(batch), rows)
    if mesh is not None:
        smaller = jax.device_put(smaller, parallel.batch(mesh))
    return runs.with_threat(smaller, batch.problem.threat), held[rows]
