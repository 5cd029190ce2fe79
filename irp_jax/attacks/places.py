"""A row of places on the devices, each for one run of one image: filled, emptied, moved together.

`held` says which image is in each place, (B,) int64, `FREE` where there is none.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import Partial

from irp_jax import draws, parallel
from irp_jax.attacks import runs
from irp_jax.attacks.attack import Attack, Problem
from irp_jax.attacks.threat import Threat

FREE = -1
GRAIN = 4
"""Batch sizes in use are multiples of the full one's quarter: each costs a compilation."""
SMALLEST = 128
"""Given fewer places than these, an attack has batches of one size only."""


class Places(NamedTuple):
    """What runs are made from, and how many there may be at once.

    Attributes:
        images: (N, H, W, C) float32 in [0, 1], clean.
        labels: (N,) int32.
        order: (N, K) int32, see `Problem`.
        threat: the ball.
        seed: of every draw.
        size: places, a multiple of the number of devices.
        mesh: devices over whose axis "data" they are split; one device if None.
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
        """Places for so many runs: of the sizes that need no more turns, the smallest."""
        if self.size < SMALLEST:
            return self.size
        devices = 1 if self.mesh is None else self.mesh.size
        grain = -(-self.size // (GRAIN * devices)) * devices
        turns = max(1, -(-wanted // self.size))
        return min(self.size, max(1, -(-wanted // (turns * grain))) * grain)

    def _problem(self, attack: Attack, rows: np.ndarray, numbers: np.ndarray) -> Problem:
        """The runs `numbers` of the images `rows`, on the devices."""
        image, label, order, row, number = jax.device_put(
            (self.images[rows], self.labels[rows], self.order[rows], rows, numbers), self._sharding
        )
        salt = np.uint32(zlib.crc32(getattr(attack, "draws", attack.name).encode()))
        key = jax.random.fold_in(draws.key(self.seed), salt)
        return Problem(image, label, order, number, runs.keys(key, row, number), self.threat)

    def fill(
        self,
        network: Partial,
        attack: Attack,
        batch: runs.Batch | None,
        held: np.ndarray,
        filled: np.ndarray,
        numbers: np.ndarray,
    ) -> runs.Batch:
        """Starts a run in some places.

        Args:
            network, attack: of the runs.
            batch: runs under way; None before the first.
            held: images in all places, the new ones included.
            filled: the places to start in, (F,), at least one.
            numbers: (N,) int32, which run is each image's next.
        """
        # Every place is given an image, for the sake of one shape; those not filled are put aside.
        rows = np.where(held == FREE, held[filled[0]], held).astype(np.int32)
        fresh = np.zeros(len(held), bool)
        fresh[filled] = True
        problem = self._problem(attack, rows, numbers[rows])
        if batch is None:
            shapes = jax.eval_shape(functools.partial(runs.start, network, attack), problem)
            blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.state)
            blank = jax.device_put(blank, self._sharding)
            batch = runs.Batch(problem, blank, jnp.zeros_like(problem.number), problem.number < 0)
        return runs.with_threat(runs.restart(network, attack, batch, problem, fresh), self.threat)

    def gather(
        self, batch: runs.Batch, held: np.ndarray, size: int
    ) -> tuple[runs.Batch, np.ndarray]:
        """Moves what is held to the front of a smaller batch of `size` places."""
        rows = np.argsort(held == FREE, kind="stable")[:size]
        smaller = runs.take(runs.without_threat(batch), rows)
        if self.mesh is not None:
            smaller = jax.device_put(smaller, self._sharding)
        return runs.with_threat(smaller, self.threat), held[rows]
