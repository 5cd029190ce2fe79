"""Batches of trials on the devices: starts them, advances them by some steps, reads the results.

Only these programs of an evaluation are compiled: one of each kind for every attack, network and
batch size.
"""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from irp_jax import parallel, prng
from irp_jax.attacks.attack import Attack, Problem, where
from irp_jax.attacks.checks import as_network
from irp_jax.attacks.losses import LogitsFn, is_correct
from irp_jax.attacks.threat import Threat, distance

ROUNDING = 1e-5
"""Relative error that a sum of many pixels may have in float32."""
LAST_BIT = 2e-7
"""Absolute error that a pixel may have in float32."""
AHEAD = 8
"""Steps that a Python loop takes on a CPU before it waits for the result. XLA allows 32 programs in
flight on a device. A launch beyond that blocks one of XLA's threads, of which there is one per
core. If the other threads wait for the same device in a sum over devices, nothing moves, and after
40 s XLA ends the process."""
FREE = -1
"""Marks a slot without an image."""
GRAIN = 4
"""Batch sizes are multiples of a quarter of the full size, because each size costs a
compilation."""
SMALLEST = 128
"""With fewer slots than this, an attack uses only one batch size."""


class Trials(NamedTuple):
    """A batch of trials on the device: leading axis B on every leaf but the radius."""

    problem: Problem
    state: Any
    number: jax.Array  # steps taken, int32
    running: jax.Array  # bool


class Outcome(NamedTuple):
    """The results of a batch of trials, leading axis B on every field.

    Attributes:
        claimed: bool, whether the attack reports an adversarial image.
        confirmed: bool, whether that image is misclassified in a second forward pass and lies
            inside the ball and the pixel box.
        image: (B, H, W, C), the worst image found.
        steps: int32, number of steps taken.
    """

    claimed: jax.Array
    confirmed: jax.Array
    image: jax.Array
    steps: jax.Array


def once(
    logits_fn: LogitsFn,
    attack: Attack,
    images: jax.Array,
    labels: jax.Array,
    threat: Threat,
    *,
    key: jax.Array,
) -> Any:
    """Runs one trial of an attack on each image of a batch, whatever its number of restarts.

    No result is fetched to the host, and the call may be part of a larger program. Under `jax.jit`
    on a CPU its steps are unrolled (see `advance`), and many steps take long to compile.

    Args:
        logits_fn: the network.
        attack: the attack to run.
        images: (B, H, W, C) float32 in [0, 1].
        labels: (B,) int32.
        threat: the ball.
        key: image i draws from `fold_in(key, i)`.

    Returns:
        The attack's final state; `.worst` is its result, on the device.
    """
    network = as_network(logits_fn)
    batch = begin(network, attack, images, labels, key, threat)
    sharding = getattr(images, "sharding", None)  # a traced array has none
    if isinstance(sharding, NamedSharding):
        # Arrays that start with equal values for all images come out replicated. With them, the
        # first step would have its own compiled program.
        rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        batch = parallel.place(without_threat(batch), rows)
    batch = with_threat(batch, threat)
    return advance(network, attack, batch, attack.steps).state


def trial_key(key: jax.Array, index: jax.Array | int, number: jax.Array | int) -> jax.Array:
    """Returns the key of one trial of one image.

    It depends only on these arguments: not on the batch, the number of devices, or which other
    images are still attacked.
    """
    return jax.random.fold_in(jax.random.fold_in(key, index), number)


@jax.jit
def trial_keys(key: jax.Array, rows: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(trial_key, (None, 0, 0))(key, rows, numbers)


@jax.jit
def take(tree: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def start(network: Partial, attack: Attack, problem: Problem) -> Trials:
    state = attack.start(network, problem)
    number = jnp.zeros_like(problem.number)
    return Trials(problem, state, number, ~state.worst.is_adversarial & (number < attack.steps))


@functools.partial(jax.jit, static_argnums=1)
def restart(
    network: Partial, attack: Attack, batch: Trials, problem: Problem, fresh: jax.Array
) -> Trials:
    """Starts trials of `problem` in the slots that are `fresh`; keeps `batch` elsewhere."""
    new = start(network, attack, problem)
    merged = where(fresh, without_threat(new), without_threat(batch))
    return merged._replace(problem=merged.problem._replace(threat=problem.threat))


def without_threat(batch: Trials) -> Trials:
    """Removes the threat, so that every array has one row per slot."""
    return batch._replace(problem=batch.problem._replace(threat=None))  # type: ignore[arg-type]


def with_threat(batch: Trials, threat: Threat) -> Trials:
    """Puts the threat back, with its radius as the number that the user gave.

    Compiled programs return the radius as an array, and an array would need another compilation.
    """
    return batch._replace(problem=batch.problem._replace(threat=threat))


@functools.partial(jax.jit, static_argnums=1)
def step(network: Partial, attack: Attack, batch: Trials) -> Trials:
    problem, state, number, running = batch
    new = attack.step(network, problem, state, number)
    state, number = where(running, new, state), number + running.astype(jnp.int32)
    return Trials(problem, state, number, ~state.worst.is_adversarial & (number < attack.steps))


@functools.partial(jax.jit, static_argnums=1)
def steps(network: Partial, attack: Attack, batch: Trials, count: jax.Array) -> Trials:
    return jax.lax.fori_loop(0, count, lambda _, b: step(network, attack, b), batch)


def advance(network: Partial, attack: Attack, batch: Trials, count: int) -> Trials:
    """Takes `count` steps of the running trials.

    On a CPU the loop is in Python and not in `lax`, because XLA makes the gradients of convolutions
    8 to 25 times slower inside a loop (jax-ml/jax issue 12868). It waits after every `AHEAD` steps.
    """
    threat = batch.problem.threat
    if jax.default_backend() != "cpu":
        return with_threat(steps(network, attack, batch, jnp.int32(count)), threat)
    for taken in range(1, count + 1):
        batch = with_threat(step(network, attack, batch), threat)
        if taken % AHEAD == 0:
            jax.block_until_ready(batch.number)
    return batch


@functools.partial(jax.jit, static_argnums=1)
def begin(
    network: Partial,
    attack: Attack,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    threat: Threat,
) -> Trials:
    logits = network(images).at[jnp.arange(len(labels)), labels].set(jnp.inf)
    order = jnp.argsort(-logits, axis=-1, stable=True).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.converted(key), jnp.arange(len(labels)))
    problem = Problem(images, labels, order, jnp.zeros_like(labels), keys, threat)
    return start(network, attack, problem)


@jax.jit
def outcome(network: Partial, batch: Trials) -> Outcome:
    """Reads the results and checks the images found with a second forward pass."""
    problem, worst = batch.problem, batch.state.worst
    is_adversarial = ~jax.vmap(is_correct)(network(worst.image), problem.label)
    far = jax.vmap(distance, (None, 0, 0))(problem.threat, worst.image, problem.image)
    epsilon = problem.threat.epsilon
    near = far <= epsilon * (1 + ROUNDING) + LAST_BIT
    inside = ((worst.image >= 0) & (worst.image <= 1)).all(axis=(1, 2, 3))
    confirmed = worst.is_adversarial & is_adversarial & near & inside
    return Outcome(worst.is_adversarial, confirmed, worst.image, batch.number)


@functools.partial(jax.jit, static_argnums=0)
def go_on(attack: Attack, batch: Trials, doubtful: jax.Array) -> Trials:
    """Lets trials whose find was not confirmed continue."""
    worst = batch.state.worst
    nothing = worst._replace(
        is_adversarial=jnp.zeros_like(worst.is_adversarial),
        loss=jnp.full_like(worst.loss, -jnp.inf),
    )
    state = batch.state._replace(worst=where(doubtful, nothing, worst))
    return batch._replace(
        state=state, running=batch.running | (doubtful & (batch.number < attack.steps))
    )


class Slots(NamedTuple):
    """The data of an evaluation, and batches of slots on the devices: fills and moves them.

    In the methods, `held` is the image in each slot: (B,) int64, `FREE` where there is none.

    Attributes:
        images: (N, H, W, C) float32 in [0, 1], natural.
        labels: (N,) int32.
        order: (N, K) int32, see `Problem`.
        threat: the ball.
        seed: seed of all random numbers.
        size: number of slots, a multiple of the number of devices.
        mesh: devices over whose axis "data" slots are split; one device if None.
    """

    images: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    threat: Threat
    seed: int
    size: int
    mesh: Mesh | None

    @property
    def _sharding(self) -> NamedSharding | None:
        return None if self.mesh is None else parallel.batch(self.mesh)

    def fitting(self, wanted: int) -> int:
        """Returns the fewest slots that take `wanted` trials in as few turns as a full batch."""
        if self.size < SMALLEST:
            return self.size
        devices = 1 if self.mesh is None else self.mesh.size
        grain = -(-self.size // (GRAIN * devices)) * devices
        turns = max(1, -(-wanted // self.size))
        return min(self.size, max(1, -(-wanted // (turns * grain))) * grain)

    def _problem(self, attack: Attack, rows: np.ndarray, numbers: np.ndarray) -> Problem:
        """Returns the trials `numbers` of the images `rows`, on the devices."""
        chosen: Any = (self.images[rows], self.labels[rows], self.order[rows], rows, numbers)
        image, label, order, row, number = parallel.place(chosen, self._sharding)
        salt = np.uint32(zlib.crc32(getattr(attack, "draws", attack.name).encode()))
        key = jax.random.fold_in(prng.key(self.seed), salt)
        return Problem(image, label, order, number, trial_keys(key, row, number), self.threat)

    def fill(
        self,
        network: Partial,
        attack: Attack,
        batch: Trials | None,
        held: np.ndarray,
        filled: np.ndarray,
        numbers: np.ndarray,
    ) -> Trials:
        """Starts a trial in some slots.

        Args:
            network, attack: the network and the attack of the trials.
            batch: the running trials; None before the first.
            held: the image in each slot, with the new ones.
            filled: (F,) the slots to start in, at least one.
            numbers: (N,) int32, the number of each image's next trial.
        """
        # Every slot gets an image, so that the shape is fixed. `restart` drops those not `fresh`.
        rows = np.where(held == FREE, held[filled[0]], held).astype(np.int32)
        fresh = np.zeros(len(held), bool)
        fresh[filled] = True
        problem = self._problem(attack, rows, numbers[rows])
        if batch is None:
            shapes = jax.eval_shape(functools.partial(start, network, attack), problem)
            blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.state)
            blank = parallel.place(blank, self._sharding)
            batch = Trials(problem, blank, jnp.zeros_like(problem.number), problem.number < 0)
        return with_threat(restart(network, attack, batch, problem, fresh), self.threat)

    def gather(self, batch: Trials, held: np.ndarray, size: int) -> tuple[Trials, np.ndarray]:
        """Moves the trials to the front of a smaller batch of `size` slots."""
        rows = np.argsort(held == FREE, kind="stable")[:size]
        smaller = take(without_threat(batch), rows)
        if self.mesh is not None:
            smaller = parallel.place(smaller, self._sharding)
        return with_threat(smaller, self.threat), held[rows]
