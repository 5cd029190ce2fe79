"""Accuracy under attack: counting, reproducibility and the number of compilations."""

import dataclasses
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import dense_net, new_dense_net
from jax.sharding import NamedSharding, PartitionSpec

from irp_jax import attacks, parallel
from irp_jax.attacks import AttackSpec
from irp_jax.errors import UserError
from irp_jax.evaluation import evaluate, last_iterate, probe

VARIABLES = new_dense_net()
N = 37  # not a multiple of any batch size in the tests
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), np.uint8)
PREDICTED = np.asarray(dense_net(VARIABLES, IMAGES.astype(np.float32) / 255).argmax(-1))
# Three natural images are misclassified.
LABELS = np.where(np.arange(N) < 3, (PREDICTED + 1) % 10, PREDICTED).astype(np.int32)
SPEC = AttackSpec(epsilon=0.02, steps=4, restarts=3)


def run(spec=SPEC, **options):
    return evaluate(dense_net, VARIABLES, IMAGES, LABELS, spec, **options)


def zigzag(images):
    """Is wrong only in thin shells, which an attack enters and leaves. The loss always rises."""
    x = images.reshape(len(images), -1).mean(1)
    waves = jax.lax.stop_gradient(jnp.sin(2000 * x)) - 0.8
    return jnp.stack([jnp.zeros_like(x), x + waves - jax.lax.stop_gradient(x)], axis=1)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("net", ["dense", "zigzag"])
def test_natural_and_robust_accuracy_against_a_plain_loop_over_images(net, last_only):
    apply = dense_net if net == "dense" else lambda _, images: zigzag(images)
    predicted = np.asarray(apply(VARIABLES, IMAGES.astype(np.float32) / 255).argmax(-1))
    labels = np.where(np.arange(N) < 3, (predicted + 1) % 2, predicted).astype(np.int32)
    report = evaluate(apply, VARIABLES, IMAGES, labels, SPEC, batch_size=8)
    if last_only:
        found = last_iterate(apply, VARIABLES, IMAGES, labels, SPEC, report, batch_size=8)
        whole = dataclasses.replace(SPEC, name="pgd-last")
        alone = evaluate(apply, VARIABLES, IMAGES, labels, whole, batch_size=8)
        np.testing.assert_array_equal(found.is_robust, alone.is_robust)
        assert (report.is_robust <= found.is_robust).all()
        assert net == "dense" or report.robust < found.robust
        report = found
    assert report.natural == pytest.approx((predicted == labels).mean())
    network = functools.partial(apply, VARIABLES)

    @jax.jit
    def falls(image, label, key):
        def loss(x):
            logits = network(x[None])[0]
            return attacks.cross_entropy(logits, label), logits.argmax() != label

        def step(_, so_far):
            at, is_adversarial = so_far
            gradient, wrong = jax.grad(loss, has_aux=True)(at)
            ahead = at + 0.25 * 0.02 * jnp.sign(gradient)
            return attacks.project(SPEC.threat, ahead, image), is_adversarial | wrong

        begin = attacks.random_start(SPEC.threat, key, image), jnp.asarray(False)
        last, is_adversarial = jax.lax.fori_loop(0, SPEC.steps, step, begin)
        return (is_adversarial & ~jnp.asarray(last_only)) | loss(last)[1]

    is_adversarial = predicted != labels
    salted = jax.random.fold_in(jax.random.key(0), np.uint32(zlib.crc32(b"pgd")))
    for index, restart in np.ndindex(N, 3):
        pixels = jnp.asarray(IMAGES[index], jnp.float32) / 255
        key = attacks.trial_key(salted, index, restart)
        is_adversarial[index] |= bool(falls(pixels, labels[index], key))
    assert 3 < is_adversarial.sum() < N
    np.testing.assert_array_equal(~report.is_robust, is_adversarial)
    assert report.robust == pytest.approx(1 - is_adversarial.mean())


def test_restarts_only_break_more():
    is_adversarial = [
        ~run(AttackSpec(epsilon=0.02, steps=2, restarts=r)).is_robust for r in (1, 2, 6)
    ]
    assert bool((is_adversarial[1] >= is_adversarial[0]).all()) and bool(
        (is_adversarial[2] >= is_adversarial[1]).all()
    )


def test_wider_balls_and_the_null_attack():
    none = run(AttackSpec(name="none"))
    assert none.robust == none.natural
    robust = [run(AttackSpec(epsilon=e)).robust for e in (1e-6, 0.02, 0.5)]
    assert robust[0] == none.natural and robust[2] == 0.0
    assert robust == sorted(robust, reverse=True)


def test_another_checkpoint_radius_or_seed_compiles_nothing_new():
    traces = []

    def apply(variables, images):
        traces.append(images.shape)
        return dense_net(variables, images)

    def go(seed, spec):
        return evaluate(apply, new_dense_net(seed), IMAGES, LABELS, spec, batch_size=8)

    go(0, SPEC)
    first = len(traces)
    go(1, dataclasses.replace(SPEC, epsilon=0.1, seed=5))
    assert len(traces) == first


def test_fgsm_is_the_attack_of_that_name():
    spec = AttackSpec(name="fgsm", epsilon=0.02)
    images = IMAGES.astype(np.float32) / np.float32(255)
    net = functools.partial(dense_net, VARIABLES)
    fast = attacks.fgsm(
        net, jnp.asarray(images), jnp.asarray(LABELS), spec.threat, key=jax.random.key(0)
    )
    want = (net(fast).argmax(-1) != LABELS) | (PREDICTED != LABELS)
    np.testing.assert_array_equal(~run(spec).is_robust, want)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_description_is_json_and_says_what_is_in_force(name):
    described = AttackSpec(name=name).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == name
    if name == "pgd":
        assert described["step_size"] == pytest.approx(2 / 255)
    if name == "fgsm":
        assert described["steps"] == 1 and described["step_size"] == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 8}, "did you mean 8/255"),
        ({"epsilon": 0}, "epsilon must be"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"steps": 3 * 10**9}, "steps must be at most 1,000,000, got 3000000000"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"step_size": 2}, "step size must be in"),
        ({"step_size": float("nan")}, "step size must be in"),
        ({"name": "pdg"}, "did you mean 'pgd'"),
        ({"norm": "l3"}, "norm"),
        ({"name": "autoattack", "steps": 5}, "no steps to choose"),
        ({"name": "fgsm", "restarts": 5}, "no restarts to choose"),
        ({"name": "square", "step_size": 0.01}, "no step size to choose"),
        ({"version": "plus"}, "no version to choose"),
    ],
)
def test_invalid_settings(wrong, message):
    with pytest.raises(UserError, match=message):
        AttackSpec(**wrong)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:0], LABELS[:0], "no images"),
        (IMAGES.astype(np.int32), LABELS, "uint8"),
        (IMAGES[..., 0], LABELS, "uint8"),
        (IMAGES, LABELS[:-1], "labels must be"),
        (IMAGES, LABELS.astype(np.float32), "labels must be"),
    ],
)
def test_sets_that_cannot_be_evaluated(images, labels, message):
    with pytest.raises(UserError, match=message):
        evaluate(dense_net, VARIABLES, images, labels, SPEC)


def test_a_batch_that_the_devices_cannot_share():
    with pytest.raises(UserError, match="use 8"):
        run(batch_size=7, mesh=parallel.mesh())


def test_probe_agrees_with_evaluate():
    threat = attacks.linf(0.02)
    seen = probe(
        dense_net,
        VARIABLES,
        jnp.asarray(IMAGES),
        jnp.asarray(LABELS),
        threat,
        key=jax.random.key(0),
        steps=4,
    )
    report = run(AttackSpec(epsilon=0.02, steps=4))
    fast = run(AttackSpec(name="fgsm", epsilon=0.02))
    assert float(seen.natural) == pytest.approx(report.natural)
    assert float(seen.fgsm) == pytest.approx(fast.robust)
    # The random starts differ, so a borderline image may be broken in one and not in the other.
    assert float(seen.pgd) == pytest.approx(report.robust, abs=2.5 / N)


@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec("data", None, None, None)])
def test_a_probe_compiles_a_step_once_however_many_devices(caplog, spec):
    """A state with other sharding, or a radius that became an array, would compile twice."""
    apply = lambda variables, images: dense_net(variables, images)  # noqa: E731
    mesh = parallel.mesh(2)
    images = parallel.place(IMAGES[:32] / np.float32(255), NamedSharding(mesh, spec))
    labels = parallel.place(LABELS[:32], parallel.batch(mesh))
    with jax.log_compiles():
        for key in map(jax.random.key, range(2)):
            probe(apply, VARIABLES, images, labels, SPEC.threat, key=key, steps=3)
    compiled = [record.message.split(" with ")[0] for record in caplog.records]
    assert compiled.count("Compiling jit(step)") == 2, "one program for FGSM and one for PGD"


def test_a_network_that_answers_nan_is_refused():
    with pytest.raises(UserError, match="NaN or infinity for 37 of 37"):
        evaluate(
            lambda variables, x: dense_net(variables, x) * jnp.nan, VARIABLES, IMAGES, LABELS, SPEC
        )
