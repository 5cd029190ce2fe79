"""One-step attacks against their formulas and their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import dense_net, new_dense_net

from irp_jax import attacks

EPSILON = 0.1
NET = new_dense_net()
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
LABELS = jnp.arange(6, dtype=jnp.int32)
KEY = jax.random.key(2)


def logits_fn(images):
    return dense_net(NET, images)


def distances(threat, perturbed):
    return jax.vmap(attacks.distance, (None, 0, 0))(threat, perturbed, IMAGES)


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("name", attacks.FAST_ATTACKS)
def test_a_gradient_that_is_no_number_moves_no_pixel(norm, name):
    images = jnp.full((3, 4, 4, 1), 0.5).at[0].set(0.0)
    labels = jnp.zeros(3, jnp.int32)

    def bent(x):  # the gradient of a norm is NaN at zero, of a logarithm infinite
        flat = x.reshape(len(x), -1)
        return jnp.stack([jnp.linalg.norm(flat, axis=-1), jnp.log(flat).sum(-1) * 1e-3], -1)

    threat = attacks.Threat(norm=norm, epsilon=0.1)
    got = attacks.fgsm(
        bent, images, labels, threat, key=jax.random.key(0), attack=attacks.FAST_ATTACKS[name]
    )
    assert np.isfinite(got).all() and got.min() >= 0 and got.max() <= 1
    if name == "fgsm":
        np.testing.assert_array_equal(got[0], images[0])
        assert (got[1:] != images[1:]).any()


def test_plain_fgsm_is_its_formula():
    def loss(x):
        return -jax.nn.log_softmax(logits_fn(x))[jnp.arange(6), LABELS].sum()

    want = jnp.clip(IMAGES + EPSILON * jnp.sign(jax.grad(loss)(IMAGES)), 0, 1)
    got = attacks.fgsm(logits_fn, IMAGES, LABELS, attacks.linf(EPSILON), key=KEY)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", sorted(attacks.FAST_ATTACKS))
@pytest.mark.parametrize("threat", [attacks.linf(EPSILON), attacks.l2(0.5)], ids=["linf", "l2"])
def test_bounds(name, threat):
    attack = attacks.FAST_ATTACKS[name]
    got = attacks.fgsm(logits_fn, IMAGES, LABELS, threat, key=KEY, attack=attack)
    reach = 1 if attack.project_ball else attack.start_scale + attack.step_scale
    assert float(distances(threat, got).max()) <= reach * threat.epsilon + 1e-6
    assert got.dtype == IMAGES.dtype and float(got.min()) >= 0 and float(got.max()) <= 1


def test_noise_fgsm_leaves_the_ball_and_rs_fgsm_does_not():
    threat = attacks.linf(EPSILON)
    reached = {
        name: float(
            distances(
                threat, attacks.fgsm(logits_fn, IMAGES, LABELS, threat, key=KEY, attack=a)
            ).max()
        )
        for name, a in attacks.FAST_ATTACKS.items()
    }
    assert reached["n-fgsm"] > 2.5 * EPSILON  # practically certain with 384 pixels
    assert reached["fgsm-rs"] == pytest.approx(EPSILON, abs=1e-6)


def test_no_gradient_flows_through_the_attack():
    def robust_loss(variables):
        def network(images):
            return dense_net(variables, images)

        # L2, because the gradient of a sign is zero in any case.
        return jnp.sum(attacks.fgsm(network, IMAGES, LABELS, attacks.l2(0.5), key=KEY))

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(robust_loss)(NET)))


def test_the_attack_passes_the_whole_batch_to_the_network():
    def normalised(images):
        return logits_fn((images - images.mean(0)) / (images.std(0) + 0.1))

    got = attacks.fgsm(normalised, IMAGES, LABELS, attacks.linf(EPSILON), key=KEY)
    assert (
        float(distances(attacks.linf(EPSILON), got).min()) > 0
    )  # a batch of one: all gradients zero


def test_starts_differ_by_image_and_by_key_and_repeat_for_the_same_key():
    threat, attack = attacks.linf(EPSILON), attacks.FAST_ATTACKS["n-fgsm"]
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)

    def run(seed):
        return attacks.fgsm(
            logits_fn, same, LABELS, threat, key=jax.random.key(seed), attack=attack
        )

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))
    assert not np.array_equal(run(0)[0], run(0)[1])
