"""The teacher: a larger network whose outputs are part of the compact network's targets.

Under adversarial training, small networks gain from the soft targets of a robust network (Goldblum
et al. 2020, "Adversarially robust distillation"; Zi et al. 2021, "Revisiting adversarial robustness
distillation"). In-train pruning has such a network without a second run: the *parent*, the dense
network when pruning begins. A saved network can be the teacher instead.

A teacher's forward pass may cost as much as a step of the compact network. So its outputs are
computed before an epoch and stored, for all images in the augmentation of that epoch (a *view*). If
the number of views is limited, no output is computed twice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import checkpoint, loading, parallel
from irp_jax.config import AVERAGE, PARENT, Config
from irp_jax.data import Dataset
from irp_jax.data.augmentation import Augmentation, augment_each, to_float, view_keys
from irp_jax.errors import UserError
from irp_jax.evaluation import Apply
from irp_jax.network import Network
from irp_jax.training.step import FORWARD


class TeacherOutputs(NamedTuple):
    """The view and the teacher's outputs of an epoch.

    Attributes:
        view: number of the augmentation of the images: see `augmentation.view_keys`.
        probabilities: (M, K) float32, the teacher's outputs for that view; None without a teacher.
        passes: cost of computing the probabilities, in pairs of passes per image.
    """

    view: int
    probabilities: jax.Array | None = None
    passes: float = 0.0


def load(config: Config, dataset: Dataset, log: checkpoint.Log) -> Network | None:
    """Loads the saved network that teaches. Returns None for no teacher, a parent or the average.

    Raises:
        UserError: the folder holds no network, or one for other images or classes.
    """
    if config.teacher in ("", PARENT, AVERAGE):
        return None
    try:
        found = loading.load(config.teacher, log)
    except UserError as error:
        raise UserError(f"--teacher={config.teacher} cannot be used: {error}") from error
    has, wanted = (
        f"images {one.image_shape} in {len(one.class_names)} classes" for one in (found, dataset)
    )
    if has != wanted:
        raise UserError(
            f"--teacher={config.teacher} is for {has}, the data set has {wanted}: give a network "
            f"that was trained on it"
        )
    if found.class_names != dataset.class_names:
        if sorted(found.class_names) == sorted(dataset.class_names):
            raise UserError(
                f"--teacher={config.teacher} has the same classes in another order: give a network "
                f"that was trained on this data set"
            )
        log(
            f"--teacher={config.teacher} names its classes {', '.join(found.class_names)}; they "
            f"are taken in this order for {', '.join(dataset.class_names)}"
        )
    return found


class Teacher:
    """A teacher with a cache of its outputs.

    It lives on the host. A resumed run computes the outputs again.

    Attributes:
        stored: view -> outputs that a later epoch needs, (M, K) float32.
    """

    def __init__(
        self,
        apply: Apply,
        variables: Any,
        *,
        augmentation: Augmentation,
        key: jax.Array,
        images: jax.Array,
        mesh: jax.sharding.Mesh,
        epochs: int,
        views: int = 0,
        first: int = 0,
    ) -> None:
        """Creates a teacher.

        Args:
            apply: (variables, images (N, H, W, C) float32 in [0, 1]) -> logits (N, K).
            variables: pytree of arrays.
            augmentation: of the run.
            key: of the run.
            images: (M, H, W, C) uint8, all training images, on the devices.
            mesh: devices that images are split over.
            epochs: of the run.
            views: number of augmentations of each image; 0 for a new one in every epoch.
            first: first epoch with this teacher.
        """
        self._apply, self._augmentation, self._mesh = apply, augmentation, mesh
        self._variables = parallel.place(variables, parallel.replicated(mesh))
        self._key, self._images = key, images
        self._epochs, self._views, self._first = epochs, views, first
        self.stored: dict[int, jax.Array] = {}

    def outputs(self, epoch: int) -> TeacherOutputs:
        """Returns the view and the teacher's outputs for the epoch after `epoch` completed ones.

        Outputs are stored as long as a later epoch needs them. They take four bytes for each image,
        class and view on every device. Their cost is counted in the first epoch that uses them,
        also if a resumed run computes them again.
        """
        seen = epoch - self._first
        view = self._first + (seen % self._views if self._views else seen)
        cost = FORWARD if view == epoch else 0.0
        probabilities = self.stored.get(view)
        if probabilities is None:
            probabilities = self._probabilities(view)
        if self._views and epoch + self._views < self._epochs:
            self.stored[view] = probabilities
        else:
            self.stored.pop(view, None)
        return TeacherOutputs(view, probabilities, cost)

    def _probabilities(self, view: int) -> jax.Array:
        count, mesh = len(self._images), self._mesh
        at_once = parallel.attacked_at_once(mesh, *self._images.shape[1:3])
        answer = functools.partial(
            _softmax, self._apply, self._augmentation, parallel.batch(mesh), self._variables,
            self._key, self._images, jnp.int32(view),
        )  # fmt: skip
        rows = np.arange(-(-count // at_once) * at_once, dtype=np.int32).reshape(-1, at_once)
        # The last batch is filled up with repetitions of the last image.
        parts = [answer(np.minimum(some, count - 1)) for some in rows]
        return parallel.place(jnp.concatenate(parts)[:count], parallel.replicated(mesh))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _softmax(
    apply: Apply,
    augmentation: Augmentation,
    split: Any,
    variables: Any,
    key: jax.Array,
    images: jax.Array,
    view: jax.Array,
    rows: jax.Array,
) -> jax.Array:
    rows = jax.lax.with_sharding_constraint(rows, split)
    seen = augment_each(view_keys(key, view, rows), images[rows], augmentation)
    return jax.nn.softmax(apply(variables, to_float(seen)).astype(jnp.float32))
