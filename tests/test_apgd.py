"""APGD: its guarantees, its schedule, and a comparison with PGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import (
    all_trials,
    conv_net,
    dense_net,
    drive,
    new_dense_net,
    start,
    step,
    trained_on_digits,
)
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import attacks
from irp_jax.attacks.apgd import LOSSES, Apgd, plan
from irp_jax.attacks.attack import where
from irp_jax.errors import UserError

NET = new_dense_net()
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
LABELS = dense_net(NET, IMAGES).argmax(-1).astype(jnp.int32)
RADII = {"linf": 0.03, "l2": 0.15, "l1": 0.6}
KEY = jax.random.key(2)
# One attack per norm, because each pair of an attack and a network is compiled.
ATTACKS = {
    "linf": Apgd(name="apgd-ce", loss="ce", steps=20),
    "l2": Apgd(name="apgd-dlr", loss="dlr", steps=20),
    "l1": Apgd(name="apgd-t", loss="targeted-dlr", steps=20, targets=2, restarts=2),
}
norms = pytest.mark.parametrize("norm", sorted(RADII))


def logits_fn(images):
    return dense_net(NET, images)


def threat(norm, scale=1.0):
    return attacks.Threat(norm=norm, epsilon=RADII[norm] * scale)


@norms
@given(st.floats(0.1, 10.0), st.integers(0, 1000))
def test_result_is_allowed_verified_and_no_better_than_the_start(norm, scale, seed):
    attack, ball, key = ATTACKS[norm], threat(norm, scale), jax.random.key(seed)
    found = drive(attack, logits_fn, IMAGES, LABELS, ball, key)
    problem = all_trials(attack, logits_fn, IMAGES, LABELS, ball, key)
    began = start(attack, logits_fn, problem).worst
    image, is_adversarial, value = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in found)
    for judged in (image, began.image):
        assert judged.dtype == IMAGES.dtype
        assert float(judged.min()) >= 0 and float(judged.max()) <= 1
        length = jax.vmap(attacks.distance, (None, 0, 0))(ball, judged, problem.image)
        assert float(length.max()) <= ball.epsilon * (1 + 1e-5) + 1e-6
    logits = logits_fn(image)
    np.testing.assert_array_equal(is_adversarial, logits.argmax(-1) != problem.label)
    # Two trials of the targeted attack use the most likely other class, two the next one.
    ranked = jnp.argsort(logits_fn(IMAGES), axis=1, descending=True)
    more = (ranked[:, jnp.asarray([1, 1, 2, 2])].ravel(),) if norm == "l1" else ()
    want = jax.vmap(LOSSES[attack.loss])(logits, problem.label, *more)
    np.testing.assert_allclose(value, want, rtol=1e-3, atol=1e-5)
    assert bool((is_adversarial | (value >= began.loss)).all())


def test_looks_back_when_the_paper_does():
    # The checkpoints of algorithm 1 for 100 steps, computed by hand.
    for norm in ("linf", "l2"):
        window, scale, shrinks = plan(100, norm)
        np.testing.assert_array_equal(np.flatnonzero(window) + 1, [22, 41, 57, 70, 80, 87, 93, 99])
        assert (scale == 1).all() and not shrinks.any()


def test_an_l1_run_begins_in_wider_balls():
    window, scale, shrinks = plan(100, "l1")
    np.testing.assert_array_equal(scale, [3] * 30 + [2] * 30 + [1] * 40)
    np.testing.assert_array_equal(np.flatnonzero(shrinks), [30, 60])
    assert (window == 1).all()
    assert all((plan(steps, "l1").scale == 1).any() for steps in range(1, 20))


@given(st.integers(1, 300), st.sampled_from(["linf", "l2"]))
def test_a_look_back_reaches_to_the_one_before(steps, norm):
    window = plan(steps, norm).window
    ends = np.flatnonzero(window) + 1
    np.testing.assert_array_equal(np.diff(ends, prepend=0), window[window > 0])


@norms
def test_the_step_size_follows_the_rules(norm):
    attack, ball = ATTACKS[norm], threat(norm)
    problem = all_trials(attack, logits_fn, IMAGES, LABELS, ball, KEY)
    window, scale, _ = plan(attack.steps, norm)
    radius = scale * np.float32(RADII[norm])
    state = start(attack, logits_fn, problem)
    np.testing.assert_allclose(state.step_size, radius[0] if norm == "l1" else 2 * radius[0])
    changes = 0
    for number in range(attack.steps):
        old = state
        state = step(attack, logits_fn, problem, old, jnp.full_like(problem.number, number))
        ratio = np.asarray(state.step_size / old.step_size)
        changed = ratio != 1
        changes += changed.sum()
        assert window[number] > 0 or not changed.any()
        if norm == "l1":
            share = np.asarray(state.step_size) / radius[number]
            assert (share >= 0.1 - 1e-6).all() and (share <= 1 + 1e-6).all()
            back = ratio > 1
        else:
            np.testing.assert_array_equal(ratio[changed], 0.5)
            back = changed
        # A trial that is reset goes back to its best image, with the gradient at that image.
        np.testing.assert_array_equal(state.current[back], state.best.image[back])
        np.testing.assert_array_equal(state.gradient[back], state.best_gradient[back])
        # The worst image is allowed at every step, and its loss never decreases.
        length = jax.vmap(attacks.distance, (None, 0, 0))(ball, state.worst.image, problem.image)
        assert float(length.max()) <= ball.epsilon * (1 + 1e-5)
        assert bool((old.worst.is_adversarial | (state.worst.loss >= old.worst.loss)).all())
    assert changes > 0


def test_climbs_to_the_top_of_a_hill_narrower_than_its_first_step():
    def hill(images):
        """A network whose loss is highest at the peak, and which predicts label 0 even there."""
        away = jnp.sum(jnp.square(images - peak), axis=(1, 2, 3))
        return jnp.stack([jnp.zeros_like(away), -1 - away], axis=1)

    peak = jnp.linspace(0.2, 0.7, 16).reshape(4, 4, 1)
    images, labels = jnp.full((2, 4, 4, 1), 0.4), jnp.zeros(2, jnp.int32)
    attack = Apgd(name="apgd-ce", loss="ce")
    found = drive(attack, hill, images, labels, attacks.linf(0.5), KEY)
    assert not found.is_adversarial.any()
    assert float(jnp.abs(found.image - peak).max()) < 0.02


def test_finds_the_worst_image_of_a_linear_network_in_the_l1_ball():
    weights = jax.random.normal(jax.random.key(5), (64,)) ** 3
    images = jax.random.uniform(jax.random.key(6), (3, 8, 8, 1), minval=0.2, maxval=0.8)

    def linear(images):
        """A linear network of two classes that predicts label 0 everywhere."""
        score = images.reshape(-1, 64) @ weights - 100
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    # Averaging over passes changes nothing for a deterministic network.
    attack = Apgd(name="apgd-t", loss="targeted-dlr", steps=40, targets=9, eot=2)
    found = drive(attack, linear, images, jnp.zeros(3, jnp.int32), threat("l1", 3.0), KEY)
    assert found.is_adversarial.shape == (3, 1) and not found.is_adversarial.any()
    x, w = np.asarray(images).reshape(3, 64), np.asarray(weights)
    gain = (np.asarray(found.image).reshape(3, 64) - x) @ w
    # The optimum changes the pixels of largest weight, each as far as the box allows.
    order = np.argsort(-np.abs(w))
    room = np.where(w > 0, 1 - x, x)[:, order]
    best = np.clip(1.8 - (room.cumsum(1) - room), 0, room) @ np.abs(w)[order]
    assert (gain <= best * (1 + 1e-4)).all()
    assert (gain >= 0.99 * best).all()


@norms
def test_trials_at_different_steps_do_not_affect_each_other(norm):
    attack = ATTACKS[norm]
    problem = all_trials(attack, logits_fn, IMAGES, LABELS, threat(norm), KEY)

    def walk(state, numbers):
        for number in numbers:
            numbers = jnp.full_like(problem.number, number)
            state = step(attack, logits_fn, problem, state, numbers)
        return state

    fresh = start(attack, logits_fn, problem)
    late = walk(fresh, range(9))
    is_late = jnp.arange(len(problem.label)) % 2 == 0
    mixed = where(is_late, late, fresh)
    for number in range(6):
        numbers = jnp.where(is_late, 9 + number, number).astype(jnp.int32)
        mixed = step(attack, logits_fn, problem, mixed, numbers)
    apart = where(is_late, walk(late, range(9, 15)), walk(fresh, range(6)))
    jax.tree.map(np.testing.assert_array_equal, mixed, apart)


@norms
def test_labels_and_images_of_others_have_no_influence(norm):
    ours = (ATTACKS[norm], logits_fn, IMAGES, LABELS, threat(norm), KEY)
    theirs = (
        *(ATTACKS[norm], logits_fn, IMAGES.at[1:].set(0.0), LABELS.at[1:].set(3)),
        *(threat(norm), KEY),
    )
    np.testing.assert_array_equal(drive(*ours).image[0], drive(*theirs).image[0])


def test_restarts_start_elsewhere():
    problem = all_trials(ATTACKS["l1"], logits_fn, IMAGES, LABELS, threat("l1"), KEY)
    began = start(ATTACKS["l1"], logits_fn, problem).current.reshape(6, 4, -1)
    assert bool((began[:, 0] != began[:, 1]).any(axis=1).all())


def test_number_of_trials():
    assert Apgd(name="apgd-ce", loss="ce", restarts=5).trials(10) == 5
    for targets, classes, runs in [(9, 10, 9), (9, 4, 3), (5, 10, 5), (9, 2, 1), (None, 100, 99)]:
        attack = Apgd(name="apgd-t", loss="targeted-dlr", targets=targets)
        assert attack.trials(classes) == runs


@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 0.1), pytest.param("l2", 0.6, marks=pytest.mark.slow)]
)
def test_breaks_what_pgd_breaks(norm, epsilon):
    variables, test_x, test_y = trained_on_digits()
    images, labels = jnp.asarray(test_x / np.float32(255), jnp.float32), jnp.asarray(test_y)
    net = functools.partial(conv_net, variables)
    ball = attacks.Threat(norm=norm, epsilon=epsilon)
    apgd = drive(Apgd(name="apgd-ce", loss="ce", steps=30), net, images, labels, ball, KEY)
    pgd = attacks.once(net, attacks.Pgd(gradient_steps=30), images, labels, ball, key=KEY).worst
    natural = net(images).argmax(-1) == labels
    stands, stood = (
        float((natural & ~fell).mean()) for fell in (apgd.is_adversarial[:, 0], pgd.is_adversarial)
    )
    assert 0.05 < stood < 0.95  # otherwise the comparison is meaningless
    assert stands <= stood + 1 / 360


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "drl"}, "unknown loss 'drl': did you mean 'dlr'"),
        ({"loss": "ce", "steps": 0}, "steps must be at least 1, got 0"),
        ({"loss": "ce", "restarts": 0}, "restarts must be at least 1, got 0"),
        ({"loss": "ce", "eot": 0}, "eot must be at least 1, got 0"),
        ({"loss": "ce", "targets": 9}, "aims at no class"),
        ({"loss": "targeted-dlr", "targets": 0}, "targets must be at least 1"),
        ({"loss": "ce", "rho": 75}, r"rho must be in \(0, 1\], got 75"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Apgd(name="apgd", **settings)
