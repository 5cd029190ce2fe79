"""The teacher: a larger network whose answers are part of what the small one learns.

Small networks gain from soft targets of a robust network under adversarial training (Goldblum et
al. 2020, "Adversarially robust distillation"; Zi et al. 2021, "Revisiting adversarial robustness
distillation"). In-train pruning has such a network without a second run: the dense network as it is
when pruning begins, the *parent*. A saved network may teach instead.

A teacher's forward pass may cost as much as a step of the small network. So the answers are not
computed in the step but ahead of an epoch, for all images in the augmentation that this epoch will
show them in (a *view*), and kept: with a limited number of views none is ever computed twice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import checkpoint, parallel
from irp_jax import network as networks
from irp_jax.config import AVERAGE, PARENT, Config
from irp_jax.data import Dataset
from irp_jax.data.augment import Augmentation, augment_each, to_float, view_keys
from irp_jax.errors import UserError
from irp_jax.evaluation import Apply
from irp_jax.network import Network
from irp_jax.training.step import FORWARD


class Lesson(NamedTuple):
    """What an epoch is taught.

    Attributes:
        view: the augmentation that images are shown in: see `augment.view_keys`.
        answers: (M, K) float32, a teacher's probabilities in that view; None without a teacher.
        passes: what the answers cost, in pairs of passes per image.
    """

    view: int
    answers: jax.Array | None = None
    passes: float = 0.0


def load(config: Config, dataset: Dataset, log: checkpoint.Log) -> Network | None:
    """The saved network that teaches; None where there is none, or it is of the run itself.

    Raises:
        UserError: there is none in that folder, or it is for other images or classes.
    """
    if config.teacher in ("", PARENT, AVERAGE):
        return None
    try:
        found = networks.load(config.teacher, log)
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
            f"--teacher={config.teacher} calls its classes {', '.join(found.class_names)}, which "
            f"are taken for {', '.join(dataset.class_names)}"
        )
    return found


class Teacher:
    """Who teaches a run from some epoch on, and the answers that were given so far.

    The host's own; it remembers answers, all of which can be computed again.
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
        """Takes up teaching.

        Args:
            apply: (variables, images (N, H, W, C) float32 in [0, 1]) -> logits (N, K).
            variables: its pytree of arrays.
            augmentation: of the run.
            key: of the run.
            images: (M, H, W, C) uint8, all training images, on the devices.
            mesh: devices that images are split over.
            epochs: of the run.
            views: in how many augmentations each image is shown; 0 is a new one every epoch.
            first: the first epoch that is taught.
        """
        self._apply, self._augmentation, self._mesh = apply, augmentation, mesh
        self._variables = parallel.place(variables, parallel.replicated(mesh))
        self._key, self._images = key, images
        self._epochs, self._views, self._first = epochs, views, first
        self._known: dict[int, jax.Array] = {}

    def lesson(self, epoch: int) -> Lesson:
        """What the epoch after `epoch` of them is taught.

        Answers are kept as long as another epoch will want them: four bytes an image, class and
        view on every device. They count as paid for in the first epoch that wants them, also where
        a resumed run has to compute them again.
        """
        seen = epoch - self._first
        view = self._first + (seen % self._views if self._views else seen)
        cost = FORWARD if view == epoch else 0.0
        answers = self._known.get(view)
        if answers is None:
            answers = self._answers(view)
        if self._views and epoch + self._views < self._epochs:
            self._known[view] = answers
        else:
            self._known.pop(view, None)
        return Lesson(view, answers, cost)

    def _answers(self, view: int) -> jax.Array:
        count, mesh = len(self._images), self._mesh
        at_once = parallel.attacked_at_once(mesh, *self._images.shape[1:3])
        answer = functools.partial(
            _answer, self._apply, self._augmentation, parallel.batch(mesh), self._variables,
            self._key, self._images, jnp.int32(view),
        )  # fmt: skip
        rows = np.arange(-(-count // at_once) * at_once, dtype=np.int32).reshape(-1, at_once)
        # The last ones are answered again where they do not fill a batch.
        parts = [answer(np.minimum(some, count - 1)) for some in rows]
        return parallel.place(jnp.concatenate(parts)[:count], parallel.replicated(mesh))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _answer(
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
