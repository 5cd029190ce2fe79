"""A batch of runs on the device: begun, taken a step further, looked at.

These are the only programs of a campaign that are compiled: one of each kind for every attack,
network and batch size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from irp_jax import draws
from irp_jax.attacks.attack import Attack, Problem, where
from irp_jax.attacks.inputs import as_network
from irp_jax.attacks.losses import LogitsFn, is_correct
from irp_jax.attacks.threat import Threat, distance

ROUNDING = 1e-5
"""How far a sum of many pixels may be off in float32, relative to itself."""
LAST_BIT = 2e-7
"""How far a pixel may be off."""
AHEAD = 8
"""Steps that a loop in Python may be ahead of a CPU. XLA lets 32 programs be under way on a device
and holds up a launch beyond that in one of its threads, of which there is one a core. If the others
wait for that very device to join a sum, nothing moves, and after 40 s XLA ends the process."""


class Batch(NamedTuple):
    """Places on the device, leading axis B on every leaf but the radius."""

    problem: Problem
    state: Any
    number: jax.Array  # steps taken, int32
    running: jax.Array  # bool


class Outcome(NamedTuple):
    """What runs have come to, leading axis B on every field.

    Attributes:
        claimed: bool, whether the attack says that the image fell.
        confirmed: bool, whether it does when shown once more, inside the ball and the pixel box.
        image: (B, H, W, C), the worst image found.
        steps: int32, taken.
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
    """One run of an attack on each image of a batch, whatever its restarts; nothing is fetched.

    It may be part of a larger program. Under `jax.jit` on a CPU its steps are written out one after
    another (see `advance`), which takes long to compile if they are many.

    Args:
        logits_fn: the network.
        attack: what to run.
        images: (B, H, W, C) float32 in [0, 1].
        labels: (B,) int32.
        threat: the ball.
        key: image i draws from `fold_in(key, i)`.

    Returns:
        The attack's final state; `.worst` is what it found, on the device.
    """
    network = as_network(logits_fn)
    batch = begin(network, attack, images, labels, key, threat)
    sharding = getattr(images, "sharding", None)  # under a trace it has none
    if isinstance(sharding, NamedSharding):
        # What is the same for all to begin with comes out on every device whole. Left so, the first
        # of the steps would be a program of its own.
        rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        batch = jax.device_put(without_threat(batch), rows)
    batch = with_threat(batch, threat)
    return advance(network, attack, batch, attack.steps).state


def run_key(key: jax.Array, index: jax.Array | int, number: jax.Array | int) -> jax.Array:
    """The key of one image's one run.

    It depends on nothing else: not on the batch the image travels in, nor on the number of
    devices, nor on which other images are still attacked.
    """
    return jax.random.fold_in(jax.random.fold_in(key, index), number)


@jax.jit
def keys(key: jax.Array, rows: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(run_key, (None, 0, 0))(key, rows, numbers)


@jax.jit
def take(tree: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def start(network: Partial, attack: Attack, problem: Problem) -> Batch:
    state = attack.start(network, problem)
    number = jnp.zeros_like(problem.number)
    return Batch(problem, state, number, ~state.worst.fallen & (number < attack.steps))


@functools.partial(jax.jit, static_argnums=1)
def restart(
    network: Partial, attack: Attack, batch: Batch, problem: Problem, fresh: jax.Array
) -> Batch:
    """Runs of `problem` in the places that are `fresh`, `batch` elsewhere."""
    new = start(network, attack, problem)
    merged = where(fresh, without_threat(new), without_threat(batch))
    return merged._replace(problem=merged.problem._replace(threat=problem.threat))


def without_threat(batch: Batch) -> Batch:
    """What has one row a place; the ball is one for all."""
    return batch._replace(problem=batch.problem._replace(threat=None))  # type: ignore[arg-type]


def with_threat(batch: Batch, threat: Threat) -> Batch:
    """With the radius as the number it was given as.

    What comes out of a compiled program has it as an array, which would call for another program.
    """
    return batch._replace(problem=batch.problem._replace(threat=threat))


@functools.partial(jax.jit, static_argnums=1)
def step(network: Partial, attack: Attack, batch: Batch) -> Batch:
    problem, state, number, running = batch
    new = attack.step(network, problem, state, number)
    state, number = where(running, new, state), number + running.astype(jnp.int32)
    return Batch(problem, state, number, ~state.worst.fallen & (number < attack.steps))


@functools.partial(jax.jit, static_argnums=1)
def steps(network: Partial, attack: Attack, batch: Batch, count: jax.Array) -> Batch:
    return jax.lax.fori_loop(0, count, lambda _, b: step(network, attack, b), batch)


def advance(network: Partial, attack: Attack, batch: Batch, count: int) -> Batch:
    """Takes `count` steps of the runs that are not over; the last `AHEAD` are not waited for.

    On a CPU the loop is here and not in `lax`: XLA lays out the gradients of convolutions well
    there only outside a loop, and is 8 to 25 times slower inside (jax-ml/jax issue 12868).
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
) -> Batch:
    logits = network(images).at[jnp.arange(len(labels)), labels].set(jnp.inf)
    order = jnp.argsort(-logits, axis=-1, stable=True).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draws.steady(key), jnp.arange(len(labels)))
    problem = Problem(images, labels, order, jnp.zeros_like(labels), keys, threat)
    return start(network, attack, problem)


@jax.jit
def outcome(network: Partial, batch: Batch) -> Outcome:
    """Looks at what was found once more."""
    problem, worst = batch.problem, batch.state.worst
    fallen = ~jax.vmap(is_correct)(network(worst.image), problem.label)
    far = jax.vmap(distance, (None, 0, 0))(problem.threat, worst.image, problem.image)
    epsilon = problem.threat.epsilon
    near = far <= epsilon * (1 + ROUNDING) + LAST_BIT
    inside = ((worst.image >= 0) & (worst.image <= 1)).all(axis=(1, 2, 3))
    confirmed = worst.fallen & fallen & near & inside
    return Outcome(worst.fallen, confirmed, worst.image, batch.number)


@functools.partial(jax.jit, static_argnums=0)
def go_on(attack: Attack, batch: Batch, doubtful: jax.Array) -> Batch:
    """Lets runs whose find was not confirmed look further."""
    worst = batch.state.worst
    nothing = worst._replace(
        fallen=jnp.zeros_like(worst.fallen), loss=jnp.full_like(worst.loss, -jnp.inf)
    )
    state = batch.state._replace(worst=where(doubtful, nothing, worst))
    return batch._replace(
        state=state, running=batch.running | (doubtful & (batch.number < attack.steps))
    )
