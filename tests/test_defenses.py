"""Every defense: its attack, its loss against an independent reference, and training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_nets import (
    CONFIG,
    GRAPH,
    IMAGES,
    KEY,
    LABELS,
    NETWORK,
    PIXELS,
    THREAT,
    assert_equal,
    forward,
    initial,
    logits,
    make_setup,
    perturb,
    recipe,
)
from pruning_nets import quick_jit

from irp_jax import parallel
from irp_jax.config import Config
from irp_jax.training import checkpoints, losses, progress
from irp_jax.training import optimizer as optimizers
from irp_jax.training.defenses import DEFENSES, Batch, Choice, Fast, build
from irp_jax.training.defenses.gradalign import misalignment
from irp_jax.training.divergence import LossRecord
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.state import initial_state
from irp_jax.training.step import compile_steps


@pytest.fixture(scope="module")
def variables():
    return initial()


@pytest.fixture(scope="module")
def perturbed(variables):
    """Returns name of defense -> its adversarial images for `IMAGES`."""
    return functools.cache(lambda name: perturb(DEFENSES[name], logits(variables)))


# ---- attacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(DEFENSES) - {"n-fgsm"}))
def test_adversarial_images_stay_in_the_ball_and_in_the_box(name, perturbed):
    found = perturbed(name).adversarial
    assert np.abs(found - IMAGES).max() <= THREAT.epsilon + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    assert (found != IMAGES).any() == (name != "none")


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_a_gradient_that_is_no_number_leads_no_image_astray(name, variables):
    def bent(x):  # the gradient of a norm is NaN at zero
        return logits(variables)(x) + jnp.linalg.norm(0.0 * x.reshape(len(x), -1), axis=-1)[:, None]

    found = perturb(DEFENSES[name], bent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert 0 <= found.adversarial.min() <= found.adversarial.max() <= 1


def test_attacks_of_many_steps_find_worse_images_than_attacks_of_one(variables, perturbed):
    @quick_jit
    def measures(images):
        natural, found = (logits(variables)(x) for x in (IMAGES, images))
        return losses.mean_cross_entropy(found, LABELS), losses.kl_divergence(natural, found)

    names = ("none", "fgsm", "fgsm-rs", "pgd", "trades")
    loss, distance = zip(*(measures(perturbed(name).adversarial) for name in names), strict=True)
    assert loss[0] < min(loss[1:3])
    assert max(loss[1:3]) < loss[3]
    assert max(distance[:3]) < distance[4]


def test_pgd_steps_along_the_sign_over_the_batch_as_a_whole(variables):
    begun, ended = (perturb(build(Choice("pgd", n), CONFIG), logits(variables)) for n in (6, 8))

    @quick_jit
    @jax.grad
    def gradient(x):
        labels = jax.nn.one_hot(LABELS, 3)
        return optax.softmax_cross_entropy(logits(variables)(x), labels).sum()

    current = np.asarray(begun.adversarial)
    for _ in range(2):
        current = current + np.float32(THREAT.epsilon / 4) * np.sign(gradient(current))
        current = np.clip(current, IMAGES - THREAT.epsilon, IMAGES + THREAT.epsilon).clip(0, 1)
    np.testing.assert_allclose(ended.adversarial, current, atol=1e-6)


def test_attacks_of_one_step_are_those_they_are_built_on(perturbed):
    """GradAlign attacks with FGSM, and the consistency loss with FGSM-RS."""
    for name, base in (("gradalign", "fgsm"), ("fgsm-consistency", "fgsm-rs")):
        np.testing.assert_array_equal(perturbed(name).adversarial, perturbed(base).adversarial)


def test_the_attack_of_gat_by_hand(variables):
    """One step from a corner of half the ball: up the CE, every second time plus the distance."""
    found = {}
    for count in (0, 1, 2):
        batch = Batch(IMAGES, LABELS, THREAT, KEY, step=count)
        attack = quick_jit(lambda b=batch: DEFENSES["gat"].perturb(logits(variables), b))
        found[count] = np.asarray(attack().adversarial)
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).any()

    epsilon = np.float32(THREAT.epsilon)
    coins = np.asarray(jax.random.bernoulli(KEY, shape=IMAGES.shape))
    start = (IMAGES + np.where(coins, epsilon / 2, -epsilon / 2)).clip(0, 1)

    def climbed(x, weight):
        out, natural = logits(variables)(x), logits(variables)(IMAGES)
        entropy = optax.softmax_cross_entropy_with_integer_labels(out, LABELS).mean()
        distance = jnp.square(jax.nn.softmax(out) - jax.nn.softmax(natural)).sum(1).mean()
        return entropy + weight * distance

    for count, weight in ((0, 0.0), (1, 10.0)):
        slope = np.asarray(quick_jit(jax.grad(climbed))(start, weight))
        expected = (start + epsilon * np.sign(slope)).clip(IMAGES - epsilon, IMAGES + epsilon)
        sure = np.abs(slope) > 1e-7  # for smaller slopes the sign depends on rounding
        np.testing.assert_allclose(found[count][sure], expected.clip(0, 1)[sure], atol=1e-6)


def test_a_defense_uses_its_own_settings_and_no_others():
    given = Config(
        noise=0.5, natural_weight=0.3, robustness_weight=7.0, robustness_rise=2.0, attack_steps=5
    )
    for name, defense in DEFENSES.items():
        built = build(Choice(name, 5), given)
        changed = {
            field.name
            for field in dataclasses.fields(built)
            if getattr(built, field.name) != getattr(defense, field.name)
        }
        assert changed == {
            "fgsm": {"natural_weight"},
            "fgsm-rs": {"noise", "natural_weight"},
            "n-fgsm": {"noise", "natural_weight"},
            "pgd": {"steps", "natural_weight"},
            "trades": {"steps", "beta"},
            "gat": {"weight", "rise"},
        }.get(name, set())
        assert build(Choice(name, 10), Config(defense=name)) == defense


def test_noise_is_the_radius_of_the_start(variables):
    still, noisy = (
        perturb(Fast(name="n-fgsm", noise=noise), logits(variables)).adversarial
        for noise in (1e-6, 3.0)
    )
    plain = perturb(DEFENSES["fgsm"], logits(variables)).adversarial
    np.testing.assert_allclose(still, plain, atol=1e-5)
    reach = np.abs(noisy - IMAGES).max() / THREAT.epsilon
    assert 3.5 < reach <= 4 + 1e-4


@pytest.mark.parametrize("name", DEFENSES)
def test_passes_are_as_many_as_the_network_is_asked_for(name):
    defense, calls = build(Choice(name, 1), CONFIG), []  # one step: a loop is traced once

    def linear(images):
        calls.append(images)
        return images.reshape(len(images), -1)[:, :3], {}

    def step(images, labels, memory):
        batch = Batch(images, labels, THREAT, KEY, memory)
        perturbed = defense.perturb(lambda x: linear(x)[0], batch)
        return defense.loss(linear, batch, perturbed)[0]

    memory = jax.tree.map(lambda m: m.astype(jnp.float32), defense.memory(KEY, 24, (6, 6, 2)))
    jax.eval_shape(step, IMAGES, LABELS, memory)
    # A gradient that is differentiated counts twice. TRADES and GAT have one pass without backward.
    assert len(calls) == defense.passes + {"gradalign": -1, "trades": 1, "gat": 1}.get(name, 0)
    more = build(Choice(name, 4), CONFIG).passes - defense.passes
    assert more == (3 if name in ("pgd", "trades") else 0)


# ---- losses ----------------------------------------------------------------------------------


def test_divergence_and_squared_distance_by_hand():
    p, q = (
        np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]),
        np.array([[0.25, 0.25, 0.5], [0.6, 0.3, 0.1]]),
    )
    by_hand = [
        0.5 * np.log(2) + 0.25 * np.log(0.5),
        0.2 * np.log(1 / 3) + 0.5 * np.log(5),
    ]
    found = losses.kl_divergence(*(jnp.log(x).astype(jnp.float32) + 7 for x in (p, q)))
    assert found == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert losses.squared_distance(jnp.array([[1.0, 2.0]]), jnp.array([[4.0, 0.0]])) == 6.5


def test_misalignment_of_known_gradients_and_of_none():
    def at(*entries):
        return jnp.array(entries, jnp.float32).reshape(len(entries), 1, 1, 2)

    found = quick_jit(misalignment)
    assert found(at((1, 2)), at((2, 4))) == pytest.approx(0, abs=1e-6)
    assert found(at((1, 2)), at((-3, -6))) == pytest.approx(2)
    assert found(at((0, 0)), at((0, 0))) == 0
    half = found(at((1, 0), (1, 1)), at((0, 5), (1, 0)))
    assert half == pytest.approx((1 + 1 - np.sqrt(0.5)) / 2)
    with_nothing = at((0, 0), (1e-30, 0)), at((1, 0), (0, 1e-30))
    assert found(*with_nothing) == pytest.approx(1), "no gradient does not count"
    slopes = quick_jit(jax.grad(misalignment, 1))(*with_nothing)
    assert np.isfinite(slopes).all()
    assert not slopes[0].any()


def numpy_logits(weights, images):
    """`Net` in NumPy: float64 in, float64 out."""
    conv = weights["Conv_0/kernel"]
    scale, bias = weights["BatchNorm_0/scale"], weights["BatchNorm_0/bias"]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
    )
    x = np.einsum("nhwcij,ijco->nhwo", windows, conv)
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    x = np.maximum(x * scale + bias, 0)
    return np.square(x).mean((1, 2)) @ weights["Dense_0/kernel"] + weights["Dense_0/bias"]


TAUGHT = np.random.default_rng(5).dirichlet(np.ones(3), 24).astype(np.float32)


def numpy_loss(name, weights, perturbed):
    """Returns the loss of a defense with label smoothing 0.1 and a teacher of weight 0.25."""

    def log_softmax(images):
        out = numpy_logits(weights, np.asarray(images, np.float64))
        return out - np.log(np.exp(out).sum(1, keepdims=True)), out

    soft = 0.75 * (np.full((24, 3), 0.1 / 3) + 0.9 * np.eye(3)[LABELS]) + 0.25 * TAUGHT
    (log_p, _), (log_q, found) = log_softmax(IMAGES), log_softmax(perturbed.adversarial)
    if name == "trades":
        distance = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
        return -(soft * log_p).sum(1).mean() + 6 * distance
    if name == "gat":  # in the last 15 % of training
        distance = np.square(np.exp(log_p) - np.exp(log_q)).sum(1).mean()
        return -(soft * log_p).sum(1).mean() + 10 * 4 * distance
    entropy = -(soft * log_q).sum(1).mean()
    if name == "natural-weight":
        return 0.7 * entropy - 0.3 * (soft * log_p).sum(1).mean()
    if name == "gradalign":
        first = np.asarray(perturbed.reference[0], np.float64).reshape(24, -1)
        second = np.asarray(slopes_at(weights, perturbed.reference[1]), np.float64).reshape(24, -1)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return entropy + 0.2 * (1 - (first * second).sum(1) / lengths).mean()
    return entropy + 10 * np.square(found - log_softmax(perturbed.reference)[1]).mean()


def slopes_at(weights, images):
    """Returns the gradient of the summed cross-entropy at the images, by JAX."""
    network = forward(initial(), jax.tree.map(jnp.float32, weights))

    def total(x):
        return optax.softmax_cross_entropy(network(x)[0], jax.nn.one_hot(LABELS, 3)).sum()

    return quick_jit(jax.grad(total))(images)


@pytest.mark.parametrize(
    "name", ["fgsm-consistency", "fgsm-mep", "gradalign", "trades", "gat", "natural-weight"]
)
def test_losses_and_their_gradients_are_those_of_a_copy_in_numpy(name, variables, perturbed):
    if name == "natural-weight":
        defense, found = Fast(name="n-fgsm", natural_weight=0.3), perturbed("n-fgsm")
    else:
        defense, found = DEFENSES[name], perturbed(name)

    @quick_jit
    @jax.value_and_grad
    def ours(weights):
        batch = Batch(
            IMAGES, LABELS, THREAT, KEY, smoothing=0.1, taught=TAUGHT, teacher_weight=0.25, done=0.9
        )
        return defense.loss(forward(variables, weights), batch, found)[0]

    weights = jax.tree.map(np.float64, variables["params"])
    value, gradients = ours(variables["params"])
    assert value == pytest.approx(numpy_loss(name, weights, found), rel=1e-4)
    if name == "gradalign":  # its gradient is tested below
        return
    random = np.random.default_rng(0)
    for _ in range(3):
        way = jax.tree.map(lambda w: random.normal(size=w.shape), weights)
        ahead, back = (
            numpy_loss(name, jax.tree.map(lambda w, d: w + h * d, weights, way), found)  # noqa: B023
            for h in (1e-6, -1e-6)
        )
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, way)))
        assert along == pytest.approx((ahead - back) / 2e-6, rel=1e-3, abs=1e-4)


def test_gradalign_s_second_derivative_by_finite_differences(variables, perturbed):
    defense, found = DEFENSES["gradalign"], perturbed("gradalign")

    def term(weights):
        with_term, without = (
            dataclasses.replace(defense, weight=w).loss(
                forward(variables, weights), Batch(IMAGES, LABELS, THREAT, KEY), found
            )[0]
            for w in (1.0, 0.0)
        )
        return with_term - without

    @quick_jit
    def both(weights):
        slope = jax.grad(term)(weights)
        length = optax.tree_utils.tree_norm(slope)
        # The direction is the gradient, so that the difference is large compared with rounding.
        ahead, back = (
            term(optax.tree_utils.tree_add_scale(weights, s / length, slope)) for s in (3e-3, -3e-3)
        )
        return length, (ahead - back) / 6e-3

    length, difference = both(variables["params"])
    assert length > 0.01
    assert difference == pytest.approx(float(length), rel=0.05)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENSES)
def test_training_compiles_once_repeats_itself_and_resumes(name, variables, tmp_path):
    fixed = make_setup(dataclasses.replace(CONFIG, defense=name, ema=0.9, method="hinge"))
    begun = initial_state(fixed.config, fixed.plan, GRAPH, variables)
    begun = dataclasses.replace(begun, memory=DEFENSES[name].memory(KEY, 24, (6, 6, 2)))
    optimizer = optimizers.build(fixed.config, fixed.plan, GRAPH, frozen=False)
    whole = parallel.replicated(fixed.mesh)
    growing = dataclasses.replace(recipe(name), epsilon_steps=2)  # a radius that is traced
    steps = compile_steps(growing, NETWORK, optimizer, fixed.mesh)
    images, labels, key = parallel.place((PIXELS, LABELS, KEY), whole)
    batches = np.random.default_rng(0).permutation(24).astype(np.int32).reshape(3, 8)

    def run(state):
        state = parallel.place(jax.tree.map(np.array, jax.device_get(state)), whole)
        return jax.device_get(steps(state, key=key, images=images, labels=labels, batches=batches))

    first, metrics = run(begun)
    assert np.isfinite(metrics["loss"]).all()
    assert (first.memory is not None) == (name == "fgsm-mep")
    assert first.memory is None or (first.memory.start != begun.memory.start).mean() > 0.2
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(first.average), jax.tree.leaves(begun.average), strict=True)
    )
    assert_equal(run(begun)[0], first)

    so_far = progress.Progress(
        epoch=1, keep_counts={}, seconds=1.0, state=first, defense=Choice(name, 10), passes=2.0,
        images=8,
        rollbacks=({"epoch": 1, "to": [name, 10]},), clip=0.5,
        accuracy_record=AccuracyRecord().after(0.25, 0.5),
        loss_record=LossRecord.begin(np.arange(10), 10).after(1.5),
    )  # fmt: skip
    checkpoints.save(fixed, so_far, tmp_path)
    resumed = checkpoints.resume(fixed, tmp_path, print)
    assert_equal(resumed.state, first)
    assert dataclasses.replace(resumed, state=None) == dataclasses.replace(so_far, state=None)
    assert_equal(run(resumed.state)[0], run(first)[0])
    assert steps._cache_size() == 1
