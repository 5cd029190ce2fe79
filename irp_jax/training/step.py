"""One training step, attack and descent on weights and masks; and many of them as one program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from irp_jax import parallel
from irp_jax.attacks import FastAttack, Threat, fgsm
from irp_jax.data.augment import Augmentation, augment, to_float
from irp_jax.models import Architecture
from irp_jax.pruning import cost, masks
from irp_jax.training.losses import cross_entropy

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training carries from step to step.

    Attributes:
        step: () int32, steps taken since the start of the run.
        params: {"weights": parameter tree of the network, "masks": mask name -> logits}.
        batch_stats: running statistics of the network's norms.
        optimizer: state of the optax optimiser.
    """

    step: jax.Array | np.ndarray
    params: dict[str, Any]
    batch_stats: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The fixed settings of a step.

    Attributes:
        architecture: of the network being trained, as it is now.
        cost_kind: which cost the reported ratio is of.
        threat: what the network is hardened against.
        attack: the one-step attack that makes the training images.
        augmentation: applied before the attack.
        label_smoothing: probability mass taken from the label, in [0, 1).
    """

    architecture: Architecture
    cost_kind: cost.Kind
    threat: Threat
    attack: FastAttack
    augmentation: Augmentation
    label_smoothing: float


def train_step(
    recipe: Recipe,
    network: Callable,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Attack through the masked network, then one descent step on weights and masks together.

    Args:
        recipe: fixed settings.
        network: (weights, batch_stats, images, train) -> logits (N, K), new batch_stats.
        optimizer: over {"weights", "masks"}; the masks' part knows the hardware loss (budget.py).
        key: the run's; each step derives its own.
        state: before the step.
        images: (N, H, W, C) uint8.
        labels: (N,) int32.

    Returns:
        The state after it, and scalars: loss, FGSM accuracy on this batch, cost ratio.
    """
    # A step's keys depend on the run's and its number alone, so a resumed run repeats itself.
    augment_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = to_float(augment(augment_key, images, recipe.augmentation))

    def masked(params):
        return masks.apply(recipe.architecture, params["weights"], masks.gates(params["masks"]))

    weights = masked(state.params)
    adversarial = fgsm(
        lambda x: network(weights, state.batch_stats, x, train=True)[0],
        images,
        labels,
        recipe.threat,
        key=attack_key,
        attack=recipe.attack,
    )

    def loss_fn(params):
        logits, batch_stats = network(masked(params), state.batch_stats, adversarial, train=True)
        return cross_entropy(logits, labels, recipe.label_smoothing), (logits, batch_stats)

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    kept = masks.kept(masks.gates(params["masks"]))
    metrics = {
        "loss": loss,
        "fgsm_accuracy": jnp.mean(logits.argmax(-1) == labels, dtype=jnp.float32),
        "cost_ratio": jnp.asarray(
            cost.ratio(recipe.architecture, recipe.cost_kind, kept), jnp.float32
        ),
    }
    return TrainState(state.step + 1, params, batch_stats, optimizer_state), metrics


def compile_steps(
    recipe: Recipe, network: Callable, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """Many steps as one compiled program, with the data set on the device.

    Args:
        recipe, network, optimizer: as for `train_step`.
        mesh: devices the batch is split over; everything else is replicated.

    Returns:
        (state, key, images (M, H, W, C) uint8, labels (M,) int32, batches (steps, N) int32 indices)
        -> (state, metrics of each step, every leaf (steps,)). The state given is donated. The key
        is an argument, not a constant, so that runs of other seeds find the program compiled.
    """
    step = functools.partial(train_step, recipe, network, optimizer)
    split, whole = parallel.batch(mesh), parallel.replicated(mesh)

    # Without `out_shardings` the first result would come back laid out anew and compile once more.
    @functools.partial(jax.jit, donate_argnames="state", out_shardings=whole)
    def steps(state, key, images, labels, batches):
        def body(state, batch):
            batch = jax.lax.with_sharding_constraint(batch, split)
            return step(key, state, images[batch], labels[batch])

        return jax.lax.scan(body, state, batches)

    return steps
