"""FAB: its guarantees, closed-form distances, and its projections compared with scipy."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from attack_nets import (
    all_trials,
    dense_net,
    drive,
    new_dense_net,
    start,
)
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import attacks
from irp_jax.attacks.attack import Attacked
from irp_jax.attacks.fab import Fab, boundary_step, move_to_hyperplane
from irp_jax.errors import UserError

NET = new_dense_net()
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
LABELS = dense_net(NET, IMAGES).argmax(-1).astype(jnp.int32)
RADII = {"linf": 0.03, "l2": 0.15, "l1": 0.6}
KEY = jax.random.key(2)
UNTARGETED = Fab(name="fab", targets=None, steps=6)
TARGETED = Fab(name="fab-t", targets=2, steps=6, restarts=2)
distances = jax.jit(jax.vmap(attacks.distance, (None, 0, 0)))
margins = jax.jit(lambda images, labels: jax.vmap(attacks.margin)(logits_fn(images), labels))
norms = pytest.mark.parametrize("norm", sorted(RADII))


def logits_fn(images):
    return dense_net(NET, images)


def flat(found):
    """Returns the trials (N, R) of `drive` as one batch (N * R)."""
    return Attacked(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in found))


move = jax.jit(move_to_hyperplane, static_argnums=0)


@contextlib.contextmanager
def float64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("attack", "norm"), [(UNTARGETED, "linf"), *((TARGETED, norm) for norm in sorted(RADII))]
)
@given(st.floats(0.05, 10.0), st.integers(0, 1000))
def test_result_is_allowed_verified_and_no_better_than_the_start(attack, norm, scale, seed):
    ball = attacks.Threat(norm=norm, epsilon=RADII[norm] * scale)
    key = jax.random.key(seed)
    found = flat(drive(attack, logits_fn, IMAGES, LABELS, ball, key))
    problem = all_trials(attack, logits_fn, IMAGES, LABELS, ball, key)
    assert found.image.dtype == IMAGES.dtype
    assert float(found.image.min()) >= 0 and float(found.image.max()) <= 1
    length = distances(ball, found.image, problem.image)
    assert float(length.max()) <= ball.epsilon * (1 + 1e-6)
    np.testing.assert_array_equal(
        found.is_adversarial, logits_fn(found.image).argmax(-1) != problem.label
    )
    margin = margins(found.image, problem.label)
    np.testing.assert_allclose(found.loss, margin, rtol=1e-4, atol=1e-5)
    began = start(attack, logits_fn, problem).worst.image
    at_start = margins(began, problem.label)
    assert bool((found.is_adversarial | (found.loss >= at_start - 1e-5)).all())


@norms
def test_the_first_run_starts_at_the_image_and_others_up_to_half_of_epsilon_away(norm):
    ball = attacks.Threat(norm=norm, epsilon=RADII[norm])
    problem = all_trials(TARGETED, logits_fn, IMAGES, LABELS, ball, KEY)
    began = start(TARGETED, logits_fn, problem).current
    away = distances(ball, began, problem.image).reshape(6, 4)
    np.testing.assert_array_equal(away[:, ::2], 0)  # trials 0 and 2: one for each target
    assert float(away[:, 1::2].min()) > 0
    assert float(away.max()) <= RADII[norm] / 2 * (1 + 1e-6)


@pytest.mark.parametrize("attack", [UNTARGETED, TARGETED])
def test_others_in_the_batch_have_no_influence(attack):
    ball = attacks.linf(0.02)
    together = drive(attack, logits_fn, IMAGES, LABELS, ball, KEY)
    others = drive(attack, logits_fn, IMAGES.at[1:].set(0.0), LABELS, ball, KEY)
    np.testing.assert_array_equal(together.image[0], others.image[0])


WEIGHTS = np.random.default_rng(3).normal(size=(64, 3)).astype(np.float32)


def three_planes(images):
    return (images - 0.5).reshape(len(images), -1) @ WEIGHTS


def two_planes(images):
    return three_planes(images)[:, :2]


@pytest.mark.parametrize(
    ("net", "targets", "norm"),
    [(two_planes, 1, "linf"), *((three_planes, None, norm) for norm in sorted(RADII))],
)
def test_finds_the_least_distance_of_a_linear_classifier(net, targets, norm):
    images = 0.5 + 0.02 * jax.random.normal(jax.random.key(4), (3, 8, 8, 1))
    logits = np.asarray(net(images))
    labels = logits.argmax(-1)
    normals = WEIGHTS[:, : logits.shape[1]]
    attack = Fab(name="fab", targets=targets, steps=20)
    for image, scores, label in zip(images, logits, labels, strict=True):
        others = np.arange(len(scores)) != label
        dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
        slopes = np.linalg.norm(normals[:, others] - normals[:, [label]], dual, axis=0)
        least = float(((scores[label] - scores[others]) / slopes).min())
        assert 0 < least < 0.4  # otherwise the box would increase the distance
        for scale, falls in ((1.02, True), (0.99, False)):
            ball = attacks.Threat(norm=norm, epsilon=least * scale)
            found = drive(attack, net, image[None], jnp.asarray([label], jnp.int32), ball, KEY)
            assert bool(found.is_adversarial.any()) == falls


def shortest(norm, image, value, gradient):
    """Returns the distance to the hyperplane within the box, computed by a general solver."""
    n = len(image)
    room = np.stack([-image, 1 - image], axis=1)
    if norm == "linf":  # (move, bound): minimise the bound
        cost, each, one = np.append(np.zeros(n), 1), np.eye(n), np.ones((n, 1))
        within = np.block([[each, -one], [-each, -one]])
        found = scipy.optimize.linprog(
            cost, within, np.zeros(2 * n), [np.append(gradient, 0)], [-value], [*room, (0, None)]
        )
        return found.fun
    if norm == "l1":  # (up, down): minimise both
        parts = [*((0, high) for high in 1 - image), *((0, high) for high in image)]
        equal = [np.append(gradient, -gradient)]
        return scipy.optimize.linprog(np.ones(2 * n), A_eq=equal, b_eq=[-value], bounds=parts).fun
    plane = {"type": "eq", "fun": lambda d: value + gradient @ d, "jac": lambda d: gradient}
    found = scipy.optimize.minimize(
        lambda d: d @ d, np.zeros(n), jac=lambda d: 2 * d, bounds=room, constraints=plane,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    return found.fun**0.5


@norms
@given(st.integers(0, 10**6), st.floats(-1.4, 1.4), st.floats(-3, 3))
def test_moves_are_the_shortest_ones(norm, seed, share, magnitude):
    rng = np.random.default_rng(seed)
    image = np.clip(rng.uniform(-0.3, 1.3, 10), 0, 1)  # some pixels are at a bound of the box
    gradient = rng.normal(size=10) * 10**magnitude * (rng.uniform(size=10) > 0.2)
    to_lowest = np.where(gradient > 0, -image, 1 - image) @ gradient
    to_highest = np.where(gradient > 0, 1 - image, -image) @ gradient
    # If |share| is above one, the hyperplane does not meet the box.
    value = -share * (to_highest if share > 0 else -to_lowest)
    with float64():
        moved = np.asarray(move(norm, image, value, gradient))
    assert moved.dtype == np.float64
    assert (image + moved).min() >= -1e-12 and (image + moved).max() <= 1 + 1e-12
    reached, size = value + gradient @ moved, max(abs(value), 1e-9)
    if abs(share) > 1:
        assert reached == pytest.approx(value + (to_lowest if value > 0 else to_highest))
        return
    assert abs(reached) <= 1e-9 * size
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    scale = np.abs(gradient).max() or 1.0
    least = shortest(norm, image, value / scale, gradient / scale)
    assert np.linalg.norm(moved, order) == pytest.approx(least, rel=1e-5, abs=1e-6)


@norms
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_the_gradient_does_not_matter(norm, scale):
    image, gradient = IMAGES[0], jax.random.normal(KEY, (8, 8, 1))
    usual, scaled = (move(norm, image, 3.0 * s, s * gradient) for s in (1.0, scale))
    np.testing.assert_allclose(usual, scaled, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(usual).max()) > 0


@norms
def test_without_a_gradient_the_step_only_leads_towards_the_natural_image(norm):
    ball = attacks.Threat(norm=norm, epsilon=0.1)
    step = jax.jit(functools.partial(boundary_step, alpha_max=0.1, eta=1.05))
    leads, gradients = jnp.asarray([-1.0, -2.0]), jnp.zeros((2, 8, 8, 1))
    stepped = step(ball, IMAGES[0], IMAGES[1], leads, gradients)
    np.testing.assert_allclose(stepped, 0.9 * IMAGES[1] + 0.1 * IMAGES[0], atol=1e-6)


def test_at_least_as_strong_as_pgd():
    images = jax.random.uniform(jax.random.key(5), (100, 8, 8, 1))
    labels = logits_fn(images).argmax(-1).astype(jnp.int32)
    pgd, fab = (
        float(
            drive(attack, logits_fn, images, labels, attacks.linf(0.02), KEY).is_adversarial.mean()
        )
        for attack in (attacks.Pgd(gradient_steps=20), Fab(name="fab", targets=None, steps=20))
    )
    assert 0.1 < pgd < 0.9
    assert fab >= pgd


def test_number_of_trials_is_limited_by_the_targets():
    assert Fab(name="fab", targets=None, restarts=5).trials(10) == 5
    assert Fab(name="fab-t", targets=9, restarts=2).trials(10) == 18
    assert Fab(name="fab-t", targets=9).trials(3) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"restarts": 0}, {"targets": 0}, {"alpha_max": 2.0}, {"eta": 0.9}, {"beta": 1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_refuses_invalid_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Fab(**{"name": "fab", "targets": None, **wrong})
