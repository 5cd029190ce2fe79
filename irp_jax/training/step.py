"""One training step: attack, then descent on weights and masks. Many steps as one program."""

import dataclasses
import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from irp_jax import parallel
from irp_jax.attacks import Threat
from irp_jax.data.augmentation import Augmentation, augment_each, to_float, view_keys
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks
from irp_jax.training import overfitting
from irp_jax.training.defenses import Batch, Defense, recall
from irp_jax.training.losses import mean_cross_entropy
from irp_jax.training.plan import threat_at
from irp_jax.training.state import TrainState, update_average

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The fixed settings of a step.

    Attributes:
        graph: of the dense network.
        cost_kind: cost of the reported ratio.
        threat: the ball of allowed perturbations.
        epsilon_steps: steps in which the training radius grows to that of `threat`; 0 for none.
        defense: perturbs the images and computes the loss.
        augmentation: applied before the attack.
        label_smoothing: probability mass taken from the label, in [0, 1).
        steps: of the whole run.
        teacher_weight: share of the teacher's output in the target, if there is a teacher.
        taught_by_average: whether the teacher is the moving average of the network.
        ema: decay of the moving average, in [0, 1), if the state has one.
        guarded: whether the last step is followed by a probe for catastrophic overfitting.
    """

    graph: ChannelGraph
    cost_kind: cost.Kind
    threat: Threat
    defense: Defense
    augmentation: Augmentation
    label_smoothing: float
    steps: int = 1
    teacher_weight: float = 0.0
    taught_by_average: bool = False
    epsilon_steps: int = 0
    ema: float = 0.0
    guarded: bool = False

    @property
    def passes(self) -> float:
        """Pairs of a forward and a backward pass per image and step. A forward pass counts 1/3."""
        return self.defense.passes + self.taught_by_average * FORWARD


FORWARD = 1 / 3
"""Cost of a forward pass in units of a forward and a backward pass, which take about three times as
much work."""


def train_step(
    recipe: Recipe,
    network: Callable,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    view: jax.Array | int = 0,
    taught: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """Attacks the masked network, then takes one descent step on weights and masks together.

    Args:
        recipe: fixed settings.
        network: (weights, batch_stats, images, train, key) -> logits (N, K), new batch_stats.
        optimizer: over {"weights", "masks"}; its part for the masks is the method's rule
            (`pruning.mask_rules`).
        key: of the run; each step derives its own.
        state: before the step.
        images: (N, H, W, C) uint8.
        labels: (N,) int32.
        indices: (N,) int32, positions in the data set, all different.
        view: () int32, number of the augmentation of each image: see `augmentation.view_keys`.
        taught: (N, K) float32, a teacher's probabilities for that view; None without a teacher.

    Returns:
        The state after the step, and scalars. "loss" is the defense's loss. "cross_entropy" and
        "train_accuracy" are of the adversarial images of this batch, whatever the attack.
        "cost_ratio" is the cost of the kept units divided by the dense cost.
    """
    chex.assert_rank([images, labels, indices], [4, 1, 1])
    chex.assert_equal_shape_prefix([images, labels, indices], 1)
    # The keys of a step depend on the run's key and the step alone, so a resumed run repeats them.
    step_key = jax.random.fold_in(key, state.step)
    attack_key = jax.random.split(step_key)[1]
    dropout_key = jax.random.fold_in(step_key, 2**32 - 1)
    augment_keys = view_keys(key, view, indices)
    images = to_float(augment_each(augment_keys, images, recipe.augmentation))
    # Cutout does not move pixels, and the memory of pixels behind the square must be kept.
    moving = dataclasses.replace(recipe.augmentation, cutout=0)
    seen, store = recall(state.memory, indices, lambda x: augment_each(augment_keys, x, moving))

    def masked(params):
        return masks.apply(recipe.graph, params["weights"], masks.gates(params["masks"]))

    weights = masked(state.params)
    threat = threat_at(recipe.threat, state.step, recipe.epsilon_steps)

    def forward(weights, x):
        # One dropout mask per step, so that the attacked network is the one that is trained.
        return network(weights, state.batch_stats, x, True, dropout_key)

    if recipe.taught_by_average:
        mean = masked({**state.params, "weights": state.average["weights"]})
        answer, _ = network(mean, state.average["batch_stats"], images, False, dropout_key)
        taught = jax.lax.stop_gradient(jax.nn.softmax(answer))
    batch = Batch(
        images, labels, threat, attack_key, seen, recipe.label_smoothing, taught,
        recipe.teacher_weight, state.step, state.step / recipe.steps,
    )  # fmt: skip
    perturbed = recipe.defense.perturb(lambda x: forward(weights, x)[0], batch)

    def loss_fn(params):
        weights = masked(params)
        return recipe.defense.loss(functools.partial(forward, weights), batch, perturbed)

    (loss, trained), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    keep_counts = masks.keep_counts(masks.gates(params["masks"]))
    # Targets from the labels alone, so that the guard can compare this loss between epochs.
    hard = batch._replace(taught=None).targets(trained.logits)
    metrics = {
        "loss": loss,
        "cross_entropy": mean_cross_entropy(trained.logits, hard),
        "train_accuracy": jnp.mean(trained.logits.argmax(-1) == labels, dtype=jnp.float32),
        "cost_ratio": jnp.asarray(
            cost.ratio(recipe.graph, recipe.cost_kind, keep_counts), jnp.float32
        ),
    }
    latest = {"weights": params["weights"], "batch_stats": trained.batch_stats}
    after = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=trained.batch_stats,
        optimizer=optimizer_state,
        average=update_average(state.average, latest, state.step, recipe.ema),
        memory=store(perturbed.memory),
    )
    return after, metrics


def compile_steps(
    recipe: Recipe, network: Callable, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """Compiles many steps into one program.

    Args:
        recipe, network, optimizer: as for `train_step`.
        mesh: devices that the batch is split over; everything else is replicated.

    Returns:
        A function (state, key, images, labels (M,) int32, batches (steps, N) int32 indices, view,
        taught) -> (state, metrics of each step, each leaf (steps,)). The images are the whole data
        set, (M, H, W, C) uint8, or those of the batches alone, (steps, N, H, W, C) uint8. `view`
        and `taught` are as for `train_step`, but `taught` is (M, K) or None. If `recipe.guarded`,
        the metrics include those of `probe_state` (1,) on the last images. The given state is
        donated. The key is an argument and not a constant, so that runs with other seeds use the
        same program.
    """
    step = functools.partial(train_step, recipe, network, optimizer)
    split, whole = parallel.batch(mesh), parallel.replicated(mesh)

    # Without `out_shardings` the first result has another layout and the second call compiles
    # again.
    @functools.partial(jax.jit, donate_argnames="state", out_shardings=whole)
    def steps(state, key, images, labels, batches, view=0, taught=None):
        def body(state, given):
            batch, shown = given
            batch = jax.lax.with_sharding_constraint(batch, split)
            shown = images[batch] if shown is None else shown
            probabilities = None if taught is None else taught[batch]
            return step(key, state, shown, labels[batch], batch, view, probabilities)

        streamed = images.ndim == 5
        state, metrics = jax.lax.scan(body, state, (batches, images if streamed else None))
        if recipe.guarded:
            count = overfitting.probe_size(batches.size, mesh.size)
            some = jax.lax.with_sharding_constraint(batches.ravel()[-count:], split)
            if streamed:
                last = images[-math.ceil(count / batches.shape[1]) :]
                last = last.reshape(-1, *images.shape[2:])[-count:]
                shown = jax.lax.with_sharding_constraint(last, split)
            else:
                shown = images[some]
            found = probe_state(recipe, network, key, state, shown, labels[some], some)
            metrics |= {name: value[None] for name, value in found.items()}
        return state, metrics

    return steps


@functools.partial(jax.jit, static_argnames=("recipe", "network"))
def probe_state(
    recipe: Recipe,
    network: Callable,
    key: jax.Array,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
) -> dict[str, jax.Array]:
    """Measures accuracy under the training attack and under PGD at the present training radius.

    It uses the trained weights, not their average. It uses training mode, because running
    statistics lag behind when the network learns fast.

    Args:
        recipe, network, key, state: as for `train_step`.
        images: (N, H, W, C) uint8, not augmented.
        labels: (N,) int32.
        indices: (N,) int32, positions in the data set.

    Returns:
        Accuracies, () float32: "probe_trained" and "probe_pgd".
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 2**32 - 1)
    attack_key, pgd_key = jax.random.split(step_key)
    gates = masks.gates(state.params["masks"])
    weights = masks.apply(recipe.graph, state.params["weights"], gates)

    def logits_fn(x):
        return network(weights, state.batch_stats, x, True, step_key)[0]

    threat = threat_at(recipe.threat, state.step, recipe.epsilon_steps)
    images = to_float(images)
    seen, _ = recall(state.memory, indices, lambda x: x)
    batch = Batch(
        images, labels, threat, attack_key, seen, step=state.step, done=state.step / recipe.steps
    )
    perturbed = recipe.defense.perturb(logits_fn, batch)
    right = logits_fn(perturbed.adversarial).argmax(-1) == labels
    return {
        "probe_trained": jnp.mean(right, dtype=jnp.float32),
        "probe_pgd": overfitting.probe(logits_fn, images, labels, threat, pgd_key),
    }
