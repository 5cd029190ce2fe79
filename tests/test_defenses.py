"""Every defence: its attack, its loss against independent references, and training with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from defense_nets import (
    CONFIG,
    DENSE,
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
from irp_jax.training import losses, phases, progress
from irp_jax.training.defenses import DEFENSES, Batch, Choice, build
from irp_jax.training.defenses.gradalign import misalignment
from irp_jax.training.divergence import Descent
from irp_jax.training.overfitting import Health
from irp_jax.training.step import compile_steps


@pytest.fixture(scope="module")
def variables():
    return initial()


@pytest.fixture(scope="module")
def perturbed(variables):
    """By its name, what a defence makes of `IMAGES`."""
    return functools.cache(lambda name: perturb(DEFENSES[name], logits(variables)))


# ---- attacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(DEFENSES) - {"n-fgsm"}))
def test_adversarial_images_stay_in_the_ball_and_in_the_box(name, perturbed):
    found = perturbed(name).adversarial
    assert np.abs(found - IMAGES).max() <= THREAT.epsilon + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    assert (found != IMAGES).any() == (name != "none")


def test_attacks_of_many_steps_find_worse_images_than_attacks_of_one(variables, perturbed):
    @quick_jit
    def measures(images):
        clean, found = (logits(variables)(x) for x in (IMAGES, images))
        return losses.cross_entropy(found, LABELS), losses.divergence(clean, found)

    names = ("none", "fgsm", "fgsm-rs", "pgd", "trades")
    loss, distance = zip(*(measures(perturbed(name).adversarial) for name in names), strict=True)
    assert loss[0] < min(loss[1:3])
    assert max(loss[1:3]) < loss[3]
    assert max(distance[:3]) < distance[4]


def test_pgd_steps_along_the_sign_over_the_batch_as_a_whole(variables):
    begun, ended = (perturb(build(Choice("pgd", n)), logits(variables)) for n in (6, 8))

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
    """GradAlign's images are FGSM's, and those of the consistency loss are FGSM-RS's."""
    for name, base in (("gradalign", "fgsm"), ("fgsm-consistency", "fgsm-rs")):
        np.testing.assert_array_equal(perturbed(name).adversarial, perturbed(base).adversarial)


@pytest.mark.parametrize("name", DEFENSES)
def test_passes_are_as_many_as_the_network_is_asked_for(name):
    defense, calls = build(Choice(name, 1)), []  # of one step: a loop is traced once

    def linear(images):
        calls.append(images)
        return images.reshape(len(images), -1)[:, :3], {}

    def step(images, labels, memory):
        batch = Batch(images, labels, THREAT, KEY, memory)
        perturbed = defense.perturb(lambda x: linear(x)[0], batch)
        return defense.loss(linear, batch, perturbed)[0]

    memory = jax.tree.map(lambda m: m.astype(jnp.float32), defense.memory(KEY, 24, (6, 6, 2)))
    jax.eval_shape(step, IMAGES, LABELS, memory)
    # A gradient that is differentiated counts twice; TRADES asks once without going back.
    assert len(calls) == defense.passes + {"gradalign": -1, "trades": 1}.get(name, 0)
    more = build(Choice(name, 4)).passes - defense.passes
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
    found = losses.divergence(*(jnp.log(x).astype(jnp.float32) + 7 for x in (p, q)))
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


def torch_loss(name, torch, variables, perturbed):
    """The same loss in PyTorch, whose gradients are its own: value, {layer: gradients}."""
    functional = torch.nn.functional

    def tensor(array):
        return torch.tensor(np.asarray(array), dtype=torch.float64)

    weights = jax.tree.map(lambda w: tensor(w).requires_grad_(), variables["params"])
    conv, norm, dense = (weights[n] for n in ("Conv_0", "Norm_0", "Dense_0"))
    labels = torch.tensor(LABELS, dtype=torch.long)

    def network(images):
        x = images.permute(0, 3, 1, 2)
        x = functional.conv2d(x, conv["kernel"].permute(3, 2, 0, 1), padding=1)
        x = functional.batch_norm(x, None, None, norm["scale"], norm["bias"], training=True)
        return functional.relu(x).square().mean((2, 3)) @ dense["kernel"] + dense["bias"]

    def entropy(images, reduction="mean", smoothing=0.1):
        return functional.cross_entropy(
            network(images), labels, reduction=reduction, label_smoothing=smoothing
        )

    def slope(images):
        images = images.clone().requires_grad_()
        total = entropy(images, "sum", 0.0)
        return torch.autograd.grad(total, images, create_graph=True)[0].flatten(1)

    clean, found = tensor(IMAGES), tensor(perturbed.adversarial)
    if name == "trades":
        log_found = functional.log_softmax(network(found), 1)
        expected = functional.softmax(network(clean), 1)
        distance = functional.kl_div(log_found, expected, reduction="batchmean")
        loss = entropy(clean) + 6 * distance
    elif name == "gradalign":
        first, second = slope(clean).detach(), slope(tensor(perturbed.reference[1]))
        alignment = functional.cosine_similarity(first, second, dim=1).mean()
        loss = entropy(found) + 0.2 * (1 - alignment)
    else:
        start = tensor(perturbed.reference)
        loss = entropy(found) + 10 * functional.mse_loss(network(found), network(start))
    loss.backward()
    return loss.item(), jax.tree.map(lambda w: w.grad.numpy(), weights)


@pytest.mark.parametrize("name", ["fgsm-consistency", "fgsm-mep", "gradalign", "trades"])
def test_losses_and_their_gradients_are_those_of_a_copy_in_pytorch(name, variables, perturbed):
    torch = pytest.importorskip("torch")
    defense, found = DEFENSES[name], perturbed(name)

    @quick_jit
    @jax.value_and_grad
    def ours(weights):
        batch = Batch(IMAGES, LABELS, THREAT, KEY, smoothing=0.1)
        return defense.loss(forward(variables, weights), batch, found)[0]

    value, gradients = ours(variables["params"])
    expected, theirs = torch_loss(name, torch, variables, found)
    assert value == pytest.approx(expected, rel=1e-4)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * np.abs(b).max() + 1e-6)


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
        # Along the gradient itself, which is where a difference stands out from rounding.
        ahead, back = (
            term(optax.tree_utils.tree_add_scale(weights, s / length, slope)) for s in (3e-3, -3e-3)
        )
        return length, (ahead - back) / 6e-3

    length, difference = both(variables["params"])
    assert length > 0.01
    assert difference == pytest.approx(float(length), rel=0.05)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENSES)
def test_training_compiles_once_repeats_itself_and_resumes(
    name, variables, tmp_path, quick_compile
):
    fixed = make_setup(dataclasses.replace(CONFIG, defense=name, ema=0.9, method="paper"))
    begun = phases.initial_state(fixed.config, fixed.plan, DENSE, variables)
    begun = dataclasses.replace(begun, memory=DEFENSES[name].memory(KEY, 24, (6, 6, 2)))
    optimizer = phases.optimizer(fixed.config, fixed.plan, DENSE, frozen=False)
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
        epoch=1, kept={}, seconds=1.0, state=first, defense=Choice(name, 10), passes=2.0, images=8,
        retreats=({"epoch": 1, "to": [name, 10]},), health=Health().after(0.25, 0.5), clip=0.5,
        descent=Descent.begin(10).after(1.5),
    )  # fmt: skip
    progress.save(fixed, so_far, tmp_path)
    resumed = progress.resume(fixed, tmp_path, print)
    assert_equal(resumed.state, first)
    assert dataclasses.replace(resumed, state=None) == dataclasses.replace(so_far, state=None)
    assert_equal(run(resumed.state)[0], run(first)[0])
    assert steps._cache_size() == 1
