"""PGD: its guarantees, and a comparison with foolbox."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import conv_net, dense_net, new_dense_net, trained_on_digits
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import attacks
from irp_jax.errors import UserError

NET = new_dense_net()
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
LABELS = dense_net(NET, IMAGES).argmax(-1).astype(jnp.int32)
THREATS = {"linf": attacks.linf(0.05), "l2": attacks.l2(0.3), "l1": attacks.l1(0.5)}
KEY = jax.random.key(2)
FIVE_STEPS = attacks.Pgd(gradient_steps=5)


def logits_fn(images):
    return dense_net(NET, images)


@functools.partial(jax.jit, static_argnames="attack")
def run(images, labels, threat, key, attack=FIVE_STEPS):
    return attacks.once(logits_fn, attack, images, labels, threat, key=key).worst


@given(st.sampled_from(sorted(THREATS)), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_result_is_allowed_and_verified_on_the_returned_images(norm, epsilon, seed):
    threat = attacks.Threat(norm=norm, epsilon=epsilon)
    found = run(IMAGES, LABELS, threat, jax.random.key(seed))
    assert found.image.dtype == IMAGES.dtype
    assert float(found.image.min()) >= 0 and float(found.image.max()) <= 1
    length = jax.vmap(attacks.distance, (None, 0, 0))(threat, found.image, IMAGES)
    assert float(length.max()) <= epsilon + 1e-6
    np.testing.assert_array_equal(found.is_adversarial, logits_fn(found.image).argmax(-1) != LABELS)
    loss = jax.vmap(attacks.cross_entropy)(logits_fn(found.image), LABELS)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_never_better_for_the_network_than_the_start(norm):
    threat = THREATS[norm]
    found = run(IMAGES, LABELS, threat, KEY)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(6))
    starts = jax.vmap(attacks.random_start, (None, 0, 0))(threat, keys, IMAGES)
    at_start = jax.vmap(attacks.cross_entropy)(logits_fn(starts), LABELS)
    assert bool((found.is_adversarial | (found.loss >= at_start - 1e-6)).all())


def test_labels_and_images_of_others_have_no_influence():
    threat = THREATS["linf"]
    together = run(IMAGES, LABELS, threat, KEY)
    others = run(IMAGES.at[1:].set(0.0), LABELS.at[1:].set(3), threat, KEY)
    np.testing.assert_array_equal(together.image[0], others.image[0])
    alone = run(IMAGES[:1], LABELS[:1], threat, KEY)
    np.testing.assert_allclose(together.image[0], alone.image[0], atol=1e-6)


def test_one_step_of_epsilon_from_the_image_is_fgsm():
    threat = attacks.linf(0.004)
    attack = attacks.Pgd(gradient_steps=1, step_size=0.004, start_scale=0.0)
    found = run(IMAGES, LABELS, threat, KEY, attack)
    fast = attacks.fgsm(logits_fn, IMAGES, LABELS, threat, key=KEY)
    np.testing.assert_allclose(found.image, fast, atol=1e-7)


@pytest.mark.parametrize("norm", sorted(THREATS))
def test_it_climbs_as_a_loop_over_single_images_does(norm):
    threat, steps = THREATS[norm], 5

    @functools.partial(jax.value_and_grad, has_aux=True)
    def judge(image, label):
        logits = logits_fn(image[None])[0]
        return attacks.cross_entropy(logits, label), logits.argmax() != label

    found = run(IMAGES, LABELS, threat, KEY, attacks.Pgd(gradient_steps=steps))
    for index, (natural, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        at = attacks.random_start(threat, jax.random.fold_in(KEY, index), natural)
        losses = []
        for _ in range(steps + 1):
            (loss, wrong), gradient = judge(at, label)
            losses.append(float(loss))
            if wrong:
                break
            way = np.asarray(gradient)
            match norm:
                case "linf":
                    way = np.sign(way)
                case "l2":
                    way = way / np.linalg.norm(way)
                case "l1":  # changes the largest entries, as far as the box allows
                    left, way = 1.0, np.zeros(way.size)
                    for one in np.argsort(-np.abs(np.ravel(gradient))):
                        up = np.ravel(gradient)[one] > 0
                        pixel = float(np.ravel(at)[one])
                        move = min(left, (1 - pixel if up else pixel) / (threat.epsilon / 4))
                        way[one], left = (move if up else -move), left - move
                    way = way.reshape(natural.shape).astype(np.float32)
            at = attacks.project(threat, at + np.float32(threat.epsilon / 4) * way, natural)
        assert bool(found.is_adversarial[index]) == bool(wrong)
        expected = losses[-1] if wrong else max(losses)
        assert float(found.loss[index]) == pytest.approx(expected, rel=1e-4)


def test_in_l1_a_pixel_at_its_bound_does_not_hold_it_up():
    # A linear network on black and white images. The best attack changes the most important pixels.
    weights = jnp.linspace(1.0, 2.0, 64)
    images = jnp.tile(jnp.asarray([1.0, 0.0]), (1, 32)).reshape(1, 8, 8, 1)

    def linear(images):
        x = images.reshape(len(images), -1) @ weights
        return jnp.stack([500.0 - x, 0.0 * x], axis=1)

    attack = attacks.Pgd(gradient_steps=4, start_scale=0.0, loss=attacks.margin)
    found = attacks.once(
        linear, attack, images, jnp.zeros(1, jnp.int32), attacks.l1(8.0), key=KEY
    ).worst
    raised = jnp.sort(weights[1::2])[-8:].sum()  # white pixels cannot be raised
    gained = found.image.ravel() @ weights - images.ravel() @ weights
    assert float(gained) == pytest.approx(float(raised), rel=0.02)


def test_an_image_broken_by_an_intermediate_step_counts():
    # Wrong only in a thin shell. The steps have the size of the ball, so they enter and leave it.
    def shell(images):
        x = images[:, 0, 0, 0]
        wrong = jnp.where((x > 0.52) & (x < 0.56), 1.0, -1.0) + 0.0 * x
        return jnp.stack([jnp.zeros_like(x), wrong + x - jax.lax.stop_gradient(x)], axis=1)

    image = jnp.full((1, 1, 1, 1), 0.5)
    attack = attacks.Pgd(gradient_steps=3, step_size=0.04, start_scale=0.0)
    labels, threat = jnp.zeros(1, jnp.int32), attacks.linf(0.1)
    found = attacks.once(shell, attack, image, labels, threat, key=KEY).worst
    assert bool(found.is_adversarial[0])
    assert 0.52 < float(found.image[0, 0, 0, 0]) < 0.56


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.6)])
def test_robust_accuracy_agrees_with_foolbox(norm, epsilon):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in foolbox's dependencies
        import foolbox
    variables, test_x, test_y = trained_on_digits()
    images, labels = jnp.asarray(test_x / np.float32(255), jnp.float32), jnp.asarray(test_y)
    net = functools.partial(conv_net, variables)
    natural = net(images).argmax(-1) == labels
    threat = attacks.Threat(norm=norm, epsilon=epsilon)
    found = attacks.once(net, attacks.Pgd(), images, labels, threat, key=KEY).worst
    ours = float((natural & ~found.is_adversarial).mean())
    reference = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")
        attack = reference(steps=10, abs_stepsize=epsilon / 4, random_start=True)
        model = foolbox.JAXModel(jax.jit(net), bounds=(0, 1))
        _, _, success = attack(model, images, labels, epsilons=[epsilon])
    theirs = 1 - float(np.asarray(success[0]).mean())
    assert 0.1 < theirs < 0.9  # otherwise the comparison is meaningless
    assert ours <= theirs + 0.01
    assert ours == pytest.approx(theirs, abs=0.03)


def test_a_loss_by_name_is_refused():
    with pytest.raises(UserError, match="dlr"):
        attacks.Pgd(loss="dlr")
