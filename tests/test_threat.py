"""Threat models and losses: the guarantees that attacks rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import attacks
from irp_jax.errors import UserError

SHAPE = (5, 4, 3)
THREATS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}
norms = st.sampled_from(sorted(THREATS))
epsilons = st.floats(1e-3, 1.0)
seeds = st.integers(0, 2**31 - 1)


def images(seed, spread=1.0):
    """Returns natural images with some pixels at 0 or 1, and images `spread` away from them."""
    rng = np.random.default_rng(seed)
    natural = np.clip(rng.uniform(-0.3, 1.3, SHAPE), 0, 1).astype(np.float32)
    return jnp.asarray(natural), jnp.asarray(
        natural + rng.normal(0, spread, SHAPE).astype(np.float32)
    )


def assert_allowed(threat, image, natural):
    assert image.dtype == natural.dtype and image.shape == natural.shape
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert float(attacks.distance(threat, image, natural)) <= threat.epsilon + 1e-6


@given(norms, epsilons, seeds, st.sampled_from([1e-3, 0.1, 1.0, 100.0]))
def test_projection_lands_in_ball_and_box_and_is_idempotent(norm, epsilon, seed, spread):
    threat = THREATS[norm](epsilon)
    natural, far = images(seed, spread)
    once = attacks.project(threat, far, natural)
    assert_allowed(threat, once, natural)
    np.testing.assert_allclose(attacks.project(threat, once, natural), once, atol=1e-6)


@given(norms, seeds)
def test_projection_leaves_allowed_images_untouched(norm, seed):
    threat = THREATS[norm](0.5)
    natural, _ = images(seed)
    allowed = attacks.clip_to_box(natural + 0.005)
    np.testing.assert_array_equal(attacks.project(threat, allowed, natural), allowed)


@given(norms, epsilons, seeds)
def test_random_start_is_allowed_and_scale_zero_is_the_image(norm, epsilon, seed):
    threat = THREATS[norm](epsilon)
    natural, _ = images(seed)
    key = jax.random.key(seed)
    assert_allowed(threat, attacks.random_start(threat, key, natural), natural)
    np.testing.assert_array_equal(attacks.random_start(threat, key, natural, 0.0), natural)


def test_random_start_fills_the_ball_uniformly():
    keys = jax.random.split(jax.random.key(0), 4000)
    natural = jnp.full((2, 1, 1), 0.5)  # the ball in two dimensions: a square, a disc

    def distances(threat):
        starts = jax.vmap(attacks.random_start, (None, 0, None))(threat, keys, natural)
        return jax.vmap(attacks.distance, (None, 0, None))(threat, starts, natural)

    for threat in (attacks.linf(0.25), attacks.l2(0.25), attacks.l1(0.25)):
        # In two dimensions a ball of half the radius has a quarter of the area.
        assert float(jnp.mean(distances(threat) < 0.125)) == pytest.approx(0.25, abs=0.03)


@given(epsilons.map(lambda epsilon: 20 * epsilon), seeds, st.sampled_from([0.1, 1.0, 100.0]))
def test_no_allowed_image_is_nearer_than_the_l1_projection(epsilon, seed, spread):
    natural, far = images(seed, spread)
    nearest = np.asarray(attacks.project(attacks.l1(epsilon), far, natural), float).ravel()
    natural, far = (np.asarray(image, float).ravel() for image in (natural, far))
    # A point p of a convex set is nearest to q if and only if (x - p) * (q - p) <= 0 for all x in
    # the set. The x with the largest product spends the radius on the pixels with the largest
    # entries of q - p, as far as the box allows.
    ahead = far - nearest
    room = np.where(ahead > 0, 1 - natural, natural)
    best_first = np.argsort(-np.abs(ahead))
    spent = np.concatenate([[0.0], np.cumsum(room[best_first])[:-1]])
    change = np.zeros_like(natural)
    change[best_first] = np.clip(epsilon - spent, 0, room[best_first])
    furthest = natural + np.sign(ahead) * change
    assert ahead @ (furthest - nearest) <= 1e-5 * max(1.0, np.abs(ahead).sum())


def test_the_l1_projection_is_exact_in_many_dimensions():
    natural, noise = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    near = attacks.project(attacks.l1(12.0), natural + 8 * (noise - 0.5), natural)
    assert np.abs(np.asarray(near, float) - natural).sum() == pytest.approx(12, rel=1e-5)
    np.testing.assert_allclose(attacks.project(attacks.l1(12.0), near, natural), near, atol=1e-6)


@given(norms, seeds, st.sampled_from([1e-30, 1.0, 1e30]))
def test_steepest_has_unit_length_however_small_the_gradient(norm, seed, size):
    gradient = jax.random.normal(jax.random.key(seed), SHAPE) * size
    threat = THREATS[norm](0.1)
    step = attacks.steepest(threat, gradient)
    assert float(attacks.distance(threat, step, jnp.zeros(SHAPE))) == pytest.approx(1, abs=1e-5)
    assert float(jnp.sum(step * gradient)) > 0


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_steepest_is_zero_without_a_gradient(norm):
    assert not attacks.steepest(THREATS[norm](0.1), jnp.zeros(SHAPE)).any()


def test_one_program_serves_every_radius():
    traces = []

    @jax.jit
    def project(threat, far, natural):
        traces.append(threat.norm)
        return attacks.project(threat, far, natural)

    natural, far = images(0)
    for epsilon in (0.1, 0.2):
        result = project(attacks.linf(epsilon), far, natural)
        np.testing.assert_allclose(jnp.max(jnp.abs(result - natural)), epsilon, atol=1e-6)
    assert traces == ["linf"]


@pytest.mark.parametrize("epsilon", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("norm", sorted(THREATS))
def test_impossible_radius(norm, epsilon):
    with pytest.raises(UserError, match="epsilon must be"):
        THREATS[norm](epsilon)


def test_forgotten_division_by_255_is_pointed_out():
    with pytest.raises(UserError, match=r"got 8: did you mean 8/255\?"):
        attacks.linf(8)


def test_unknown_norm_names_the_nearest():
    with pytest.raises(UserError, match="linf"):
        attacks.Threat(norm="linv", epsilon=0.1)  # type: ignore[arg-type]


@given(seeds)
def test_cross_entropy_is_the_textbook_one(seed):
    logits = jax.random.normal(jax.random.key(seed), (7,)) * 3
    for label in (0, 6):
        want = -jax.nn.log_softmax(logits)[label]
        assert float(attacks.cross_entropy(logits, jnp.int32(label))) == pytest.approx(
            float(want), rel=1e-5, abs=1e-6
        )
        assert (float(attacks.margin(logits, jnp.int32(label))) > 0) == (
            int(logits.argmax()) != label
        )


def test_cross_entropy_keeps_its_gradient_where_float32_saturates():
    logits = jnp.asarray([60.0, 0.0, -3.0])
    gradient = jax.grad(attacks.cross_entropy)(logits, jnp.int32(0))
    probabilities = np.exp(np.asarray([0.0, -60.0, -63.0]))
    want = np.concatenate([-probabilities[1:].sum(keepdims=True), probabilities[1:]])
    np.testing.assert_allclose(gradient, want, rtol=1e-5)


def test_a_nan_is_a_wrong_answer():
    assert not attacks.is_correct(jnp.asarray([jnp.nan, 0.0]), jnp.int32(0))
    assert attacks.is_correct(jnp.asarray([1.0, 0.0]), jnp.int32(0))


def test_the_difference_of_logits_ratio_by_hand():
    logits = jnp.asarray([1.0, 4.0, 2.0, -1.0])
    for label, want in [(0, 1.0), (1, -2 / 3), (2, 2 / 3), (3, 5 / 3)]:
        assert float(attacks.dlr(logits, jnp.int32(label))) == pytest.approx(want)
    for label, target, want in [(1, 3, -5 / 4), (1, 2, -2 / 4), (0, 1, 3 / 4), (2, 0, -1 / 4)]:
        found = attacks.targeted_dlr(logits, jnp.int32(label), jnp.int32(target))
        assert float(found) == pytest.approx(want)


@given(seeds, st.floats(-10, 10), st.floats(1e-2, 1e2), st.integers(3, 12))
def test_the_difference_of_logits_ratio_ignores_shift_and_scale(seed, shift, scale, classes):
    logits = jax.random.normal(jax.random.key(seed), (classes,))
    label, target = jnp.int32(seed % classes), jnp.int32((seed + 1) % classes)
    other = scale * (logits + shift)
    near = functools.partial(pytest.approx, rel=1e-3, abs=1e-4)
    assert float(attacks.dlr(other, label)) == near(float(attacks.dlr(logits, label)))
    assert (float(attacks.dlr(logits, label)) > 0) == (int(logits.argmax()) != int(label))
    if classes > 3:
        want = float(attacks.targeted_dlr(logits, label, target))
        assert float(attacks.targeted_dlr(other, label, target)) == near(want)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_ratios_have_gradients_with_few_classes_and_equal_logits(classes):
    label, target = jnp.int32(0), jnp.int32(1)
    for logits in (jnp.zeros(classes), -jnp.arange(classes, dtype=jnp.float32)):
        gradients = (
            jax.grad(attacks.dlr)(logits, label),
            jax.grad(attacks.targeted_dlr)(logits, label, target),
        )
        for gradient in gradients:
            assert bool(jnp.isfinite(gradient).all()) and bool(gradient.any())
    if classes == 2:
        assert float(attacks.dlr(logits, label)) == float(attacks.margin(logits, label))
    if classes < 4:
        assert float(attacks.targeted_dlr(logits, label, target)) == -1.0
