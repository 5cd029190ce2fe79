"""Square Attack: its guarantees, the published schedule and pattern, and zero gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import (
    all_trials,
    dense_net,
    drive,
    new_dense_net,
    start,
    step,
)
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import attacks
from irp_jax.attacks.attack import Attacked
from irp_jax.attacks.square import Square, bumps, first_image, side_of_square
from irp_jax.errors import UserError

NET = new_dense_net()
RADII = {"linf": 0.03, "l2": 0.15, "l1": 0.6}
KEY = jax.random.key(2)
ATTACK = Square(steps=12, restarts=2)
distances = jax.jit(jax.vmap(attacks.distance, (None, 0, 0)))
margins = jax.jit(lambda images, labels: jax.vmap(attacks.margin)(logits_fn(images), labels))
norms = pytest.mark.parametrize("norm", sorted(RADII))


def logits_fn(images):
    return dense_net(NET, images @ jnp.asarray([[0.5], [0.2], [0.3]]))


IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 3))
GREY = jnp.full((6, 8, 8, 3), 0.5, jnp.float32)
LABELS = logits_fn(IMAGES).argmax(-1).astype(jnp.int32)


@norms
@given(st.floats(0.1, 10.0), st.integers(0, 1000))
def test_result_is_allowed_verified_and_no_better_than_the_start(norm, scale, seed):
    ball, key = attacks.Threat(norm=norm, epsilon=RADII[norm] * scale), jax.random.key(seed)
    found = drive(ATTACK, logits_fn, IMAGES, LABELS, ball, key)
    found = Attacked(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in found))
    problem = all_trials(ATTACK, logits_fn, IMAGES, LABELS, ball, key)
    assert found.image.dtype == IMAGES.dtype
    assert float(found.image.min()) >= 0 and float(found.image.max()) <= 1
    length = distances(ball, found.image, problem.image)
    assert float(length.max()) <= ball.epsilon * (1 + 1e-5)
    np.testing.assert_array_equal(
        found.is_adversarial, logits_fn(found.image).argmax(-1) != problem.label
    )
    margin = margins(found.image, problem.label)
    np.testing.assert_allclose(found.loss, margin, rtol=1e-4, atol=1e-5)
    began = start(ATTACK, logits_fn, problem).worst.image
    at_start = margins(began, problem.label)
    assert bool((found.is_adversarial | (found.loss >= at_start - 1e-5)).all())


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(dataclasses.replace(ATTACK, loss="ce"), "linf"), *((ATTACK, norm) for norm in sorted(RADII))],
)
def test_the_loss_never_falls_and_some_queries_raise_it(attack, norm):
    ball = attacks.Threat(norm=norm, epsilon=RADII[norm] / 10)
    problem = all_trials(attack, logits_fn, IMAGES, LABELS, ball, KEY)
    state, losses = start(attack, logits_fn, problem), []
    for number in range(30):
        state = step(attack, logits_fn, problem, state, jnp.full((12,), number, jnp.int32))
        losses.append(np.asarray(state.worst.loss))
    assert not bool(state.worst.is_adversarial.any())
    rises = np.diff(losses, axis=0)
    assert rises.min() >= 0
    assert (rises > 0).any(axis=0).mean() > 0.5


def test_others_in_the_batch_and_their_progress_have_no_influence():
    ball = attacks.linf(0.02)
    problem = all_trials(ATTACK, logits_fn, IMAGES, LABELS, ball, KEY)
    state = start(ATTACK, logits_fn, problem)
    together = step(ATTACK, logits_fn, problem, state, jnp.full((12,), 5, jnp.int32)).worst
    number = jnp.arange(12, dtype=jnp.int32).at[0].set(5)
    apart = step(ATTACK, logits_fn, problem, state, number).worst
    np.testing.assert_array_equal(together.image[0], apart.image[0])


def test_sides_are_the_published_ones():
    # The paper's p is 0.8, halved at given queries. The sides are round(sqrt(p * 32 * 32)) by hand.
    last = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 9999]
    linf = [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    odd = [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
    for norm, sides in (("linf", linf), ("l2", odd), ("l1", odd)):
        threat = attacks.Threat(norm=norm, epsilon=1.0)
        first = [1, *(query + 1 for query in last[:-1])]
        for queries in (first, last):
            found = side_of_square(threat, jnp.asarray(queries, jnp.int32), 0.8, 32, 32)
            np.testing.assert_array_equal(found, sides)
        assert int(side_of_square(threat, jnp.asarray(1), 1.0, 6, 20)) == 6


def published_bumps(side, exponent, order):
    """Returns the pattern of Andriushchenko et al. (2020), section 4.2, built ring by ring."""

    def bump(height, width):
        values = np.zeros((height, width))
        for row in range(height):
            for column in range(width):
                ring = max(abs(row - height // 2), abs(column - width // 2))
                values[row, column] = sum(
                    1 / (k + 1) ** exponent for k in range(ring, width // 2 + 1)
                )
        return values / (np.linalg.norm(values.ravel(), order) or 1)

    both = np.concatenate([bump(side // 2, side), -bump(side - side // 2, side)])
    return both / np.linalg.norm(both.ravel(), order)


@pytest.mark.parametrize(("norm", "exponent", "order"), [("l2", 2, 2), ("l1", 4, 1)])
@pytest.mark.parametrize("side", [1, 3, 4, 7, 8])
def test_the_pattern_is_the_published_one(norm, exponent, order, side):
    ball = attacks.Threat(norm=norm, epsilon=1.0)
    expected = published_bumps(side, exponent, order)
    pattern, inside = jax.jit(bumps, static_argnums=4), jnp.arange(side)
    found = pattern(ball, inside[:, None], inside, jnp.asarray(side), jnp.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The same pattern in a larger image, and transposed.
    rows, columns = jnp.arange(10)[:, None] - 2, jnp.arange(11) - 1
    found = pattern(ball, columns, rows, jnp.asarray(side), jnp.float32)
    placed = np.zeros((10, 11))
    placed[2 : 2 + side, 1 : 1 + side] = expected.T
    np.testing.assert_allclose(found, placed, atol=1e-5)


def test_an_linf_run_starts_with_stripes_at_the_bound_and_changes_one_square_a_query():
    ball = attacks.linf(0.1)
    problem = all_trials(ATTACK, logits_fn, GREY, LABELS, ball, KEY)
    state = start(ATTACK, logits_fn, problem)
    change = np.asarray(state.worst.image - 0.5)
    np.testing.assert_allclose(np.abs(change), 0.1, atol=1e-6)
    np.testing.assert_array_equal(change, change[:, :1].repeat(8, axis=1))
    assert len(np.unique(change.round(3))) == 2
    before, touched = np.asarray(state.worst.image), np.zeros((8, 8), bool)
    for number in range(60):
        state = step(ATTACK, logits_fn, problem, state, jnp.full((12,), number, jnp.int32))
        after = np.asarray(state.worst.image)
        side = int(side_of_square(ball, jnp.asarray(number), 0.8, 8, 8))
        for image in (before != after).any(axis=-1):
            touched |= image
            rows, columns = np.nonzero(image)
            if len(rows):
                assert max(np.ptp(rows), np.ptp(columns)) < side
        np.testing.assert_allclose(np.abs(after - 0.5), 0.1, atol=1e-6)
        before = after
    assert touched[-1].any() and touched[:, -1].any()


@pytest.mark.parametrize("shape", [(12, 9, 3), (3, 4, 1)])
@norms
def test_the_first_image_is_at_the_bound_and_depends_on_the_key(norm, shape):
    natural = jnp.full(shape, 0.5)
    ball = attacks.Threat(norm=norm, epsilon=0.3)
    draw = jax.jit(jax.vmap(first_image, (None, 0, None)))
    found = draw(ball, jax.random.split(KEY, 4), natural)
    length = distances(ball, found, jnp.broadcast_to(natural, found.shape))
    np.testing.assert_allclose(length, 0.3, rtol=1e-4)
    assert bool((found != found[0]).any())


def test_an_l2_run_stays_at_the_bound():
    ball = attacks.l2(0.5)
    found = drive(ATTACK, logits_fn, GREY, LABELS, ball, KEY)
    length = distances(ball, found.image[:, 0], GREY)
    np.testing.assert_allclose(length, 0.5, rtol=1e-5)


def test_breaks_a_network_that_only_hides_its_gradient():
    def coarse(images):
        return logits_fn(jnp.round(images * 8) / 8)

    images = jax.random.uniform(jax.random.key(5), (60, 8, 8, 3))
    labels = coarse(images).argmax(-1).astype(jnp.int32)
    pgd, square = (
        float(drive(attack, coarse, images, labels, attacks.linf(0.1), KEY).is_adversarial.mean())
        for attack in (attacks.Pgd(gradient_steps=20), Square(steps=200))
    )
    assert pgd < 0.3
    assert square > 0.6


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"restarts": 0}, {"p_init": 0.0}, {"loss": "dlr"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_refuses_invalid_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Square(**wrong)
