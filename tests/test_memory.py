"""The memory of each image follows its pixels through augmentation, and FGSM-MEP uses it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_nets import (
    CONFIG,
    GRAPH,
    KEY,
    LABELS,
    NETWORK,
    PIXELS,
    THREAT,
    initial,
    perturb,
    recipe,
)
from pruning_nets import quick_jit

from irp_jax.data import Augmentation
from irp_jax.data.augmentation import augment
from irp_jax.training import optimizer as optimizers
from irp_jax.training.defenses import DEFENSES, Mep, Perturbed, recall
from irp_jax.training.defenses.mep import LEVELS, ROOTS, Prior
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.state import initial_state
from irp_jax.training.step import train_step


@pytest.fixture(scope="module")
def variables():
    return initial()


def test_memory_follows_its_images_through_crops_and_flips_and_back():
    memory = jnp.asarray(PIXELS, jnp.int16)  # the memory equals the image and must stay equal
    chosen = np.array([5, 0, 17, 9], np.int32)
    policy = Augmentation(crop_padding=2, flip=True)

    def move(x):
        return augment(KEY, x, policy)

    @quick_jit
    def round_trip():
        seen, store = recall(memory, chosen, move)
        stored = store(seen + 1000)
        return seen, stored, recall(stored, chosen, move)[0], move(jnp.ones((4, 6, 6, 2)))

    seen, stored, again, inside = jax.device_get(round_trip())
    np.testing.assert_array_equal(seen, move(PIXELS[chosen]).astype(np.float32))
    assert 0 < inside.mean() < 1, "some of the crops reach beyond their image"
    np.testing.assert_array_equal(again, (seen + 1000) * inside)
    changed = stored - np.asarray(memory)
    assert stored.dtype == memory.dtype
    assert set(np.unique(changed[chosen])) == {0, 1000}
    np.testing.assert_array_equal((changed[chosen] > 0).sum((1, 2, 3)), inside.sum((1, 2, 3)))
    assert not np.delete(changed, chosen, axis=0).any()


def test_memory_by_hand():
    memory = (jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int8).reshape(2, 1, 3, 1),)

    def left_then_mirrored(rows):  # 1 2 3 -> 2 3 _ -> _ 3 2
        return jnp.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:][:, :, ::-1]

    (seen,), store = recall(memory, np.array([1], np.int32), left_then_mirrored)
    np.testing.assert_array_equal(seen.ravel(), [0, 6, 5])
    (stored,) = store((jnp.array([70, 80, 90], jnp.float32).reshape(1, 1, 3, 1),))
    np.testing.assert_array_equal(stored.reshape(2, 3), [[1, 2, 3], [4, 90, 80]])


def test_nothing_is_remembered_where_there_is_no_memory():
    for name in set(DEFENSES) - {"fgsm-mep"}:
        assert DEFENSES[name].memory(KEY, 4, (6, 6, 2)) is None
    seen, store = recall(None, np.array([1], np.int32), lambda rows: rows)
    assert seen is None
    assert store(None) is None


def test_a_remembered_perturbation_meets_the_pixels_it_was_made_for(variables):
    """In the training step memory and image are augmented alike."""

    class Spy(Mep):
        def perturb(self, logits_fn, batch):
            shown = jnp.rint(255 * batch.images)
            missed = batch.memory.start - shown
            return Perturbed(batch.images, batch.images, Prior(shown, missed))

    config = dataclasses.replace(CONFIG, method="hinge")
    plan = make_plan(config, METHODS[config.method], GRAPH, len(PIXELS))
    optimizer = optimizers.build(config, plan, GRAPH, frozen=False)
    spied = dataclasses.replace(recipe("none"), defense=Spy())
    levels = jnp.asarray(PIXELS // 2, jnp.int8)  # the memory equals the image
    state = initial_state(config, plan, GRAPH, variables)
    state = dataclasses.replace(state, memory=Prior(levels, jnp.zeros_like(levels)))
    chosen = np.arange(0, 24, 3, dtype=np.int32)
    step = quick_jit(functools.partial(train_step, spied, NETWORK, optimizer))
    after, _ = step(KEY, state, (PIXELS // 2)[chosen], LABELS[chosen], chosen)
    shown, missed = jax.device_get(after.memory)
    np.testing.assert_array_equal(shown + missed, levels)
    assert 0 < (missed != 0).mean() < 0.1, "only what cutout has blackened was not shown"


def test_mep_by_hand():
    """Two images and a linear network with the gradient (softmax - label) times its weights."""
    defense, weights = Mep(), np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    images = np.full((2, 2, 2, 2), 0.5, np.float32)
    images[0, 0, 0] = 0.0  # at the edge of the box
    rng = np.random.default_rng(2)
    start = rng.integers(-LEVELS, LEVELS + 1, images.shape).astype(np.int8)
    roots = rng.integers(-30, 31, images.shape).astype(np.int8)
    labels, epsilon = np.array([0, 2], np.int32), THREAT.epsilon

    def linear(x):
        return x.reshape(len(x), -1) @ weights

    found = perturb(defense, linear, images, labels, Prior(jnp.asarray(start), jnp.asarray(roots)))

    first = (images + epsilon * start / LEVELS).clip(0, 1)
    shares = jax.nn.softmax(linear(first))
    gradient = ((shares - np.eye(3)[labels]) @ weights.T).reshape(images.shape)
    norm = np.abs(gradient).sum((1, 2, 3), keepdims=True) / 8
    momentum = 0.3 * np.sign(roots) * (roots / ROOTS) ** 2 + gradient / norm

    def step(direction):
        ahead = first + epsilon * np.sign(direction)
        return np.clip(ahead, images - epsilon, images + epsilon).clip(0, 1)

    np.testing.assert_allclose(found.reference, first, atol=1e-6)
    np.testing.assert_allclose(found.adversarial, step(gradient), atol=1e-6)
    following = (step(momentum) - images) / epsilon * LEVELS
    np.testing.assert_allclose(found.memory.start, following, atol=0.51)
    scaled = np.sign(momentum) * ROOTS * np.sqrt(np.abs(momentum))
    np.testing.assert_allclose(found.memory.momentum, scaled, atol=0.51)
    assert (np.sign(momentum) != np.sign(gradient)).any(), "the momentum does matter here"


def test_first_starts_are_random_corners_of_the_ball():
    prior = Mep().memory(KEY, 50, (6, 6, 2))
    assert {leaf.dtype for leaf in prior} == {jnp.dtype("int8")}
    assert set(np.unique(prior.start)) == {-LEVELS, LEVELS}
    assert abs(np.asarray(prior.start, float).mean()) < 0.1 * LEVELS
    assert not prior.momentum.any()
