"""Errors for invalid input, and warnings that a robust accuracy may be wrong."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import dense_net, new_dense_net

from irp_jax import attacks
from irp_jax.attacks import sanity
from irp_jax.attacks.checks import as_network
from irp_jax.errors import UserError

NET = functools.partial(dense_net, new_dense_net())
IMAGES = np.random.default_rng(0).uniform(size=(12, 8, 8, 1)).astype(np.float32)
LABELS = np.asarray(NET(IMAGES).argmax(-1)).astype(np.int32)
QUICK = (attacks.Pgd(gradient_steps=1),)
THREAT = attacks.linf(0.05)


def warnings_of(logits_fn, chosen=QUICK, images=IMAGES, labels=LABELS):
    told = []
    report = attacks.evaluate(
        logits_fn,
        images,
        labels,
        chosen,
        threat=THREAT,
        callbacks=attacks.Callbacks(warn=told.append),
    )
    assert list(report.warnings) == told
    assert all("\n" not in line for line in told)
    return " | ".join(told)


def test_a_plain_network_gives_no_warning():
    assert warnings_of(NET) == ""


def test_probabilities_are_flagged():
    assert "logits before the softmax" in warnings_of(lambda x: jax.nn.softmax(NET(x)))


def test_vanishing_gradients_are_flagged():
    sure = warnings_of(lambda x: 1e4 * NET(x))
    assert "zero at 12 of 12" in sure and "scale its logits down" in sure
    assert "gradients are masked" in warnings_of(lambda x: NET(jnp.round(x * 8) / 8))


def test_loops_and_random_numbers_inside_are_flagged():
    def loops(x):
        return NET(jax.lax.fori_loop(0, 2, lambda _, y: y * 0.99, x))

    def draws(x):
        return NET(x + 1e-6 * jax.random.normal(jax.random.key(0), x.shape))

    assert "loops inside" in warnings_of(jax.jit(loops))
    assert "draws random numbers" in warnings_of(draws)


def test_layers_that_are_scanned_are_no_loop_over_the_images():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.scan(
                Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return nn.Dense(10)(layer()(nn.Dense(16)(x.reshape(len(x), -1)), None)[0])

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(16)(x)), None

    net = Layers()
    variables = net.init(jax.random.key(0), IMAGES)
    answer = functools.partial(net.apply, variables)
    labels = np.asarray(answer(IMAGES).argmax(-1)).astype(np.int32)
    assert warnings_of(answer, labels=labels) == ""

    def purified(x):  # channels first, with one step size per step
        moved, _ = jax.lax.scan(
            lambda y, size: (y - size * y, None), jnp.moveaxis(x, -1, 1), jnp.full(3, 0.01)
        )
        return NET(jnp.moveaxis(moved, 1, -1))

    assert "loops inside" in warnings_of(purified)
    stacked = 0.1 * jax.random.normal(jax.random.key(0), (3, 64, 64))

    @jax.checkpoint
    def layer(x, kernel):
        return jax.nn.relu(x @ kernel), None

    def plain(x):
        return NET(jax.lax.scan(layer, x.reshape(len(x), -1), stacked)[0].reshape(x.shape))

    assert "loops inside" not in warnings_of(plain)


def descend(loss, start, scanned=None):
    def step(point, noise):
        moved = point - 0.01 * jax.grad(loss)(point)
        return (moved if noise is None else moved + noise), None

    return jax.lax.scan(step, start, scanned, length=3)[0]


def purify(x):
    return NET(descend(lambda y: NET(y).max(), x))


def purify_with_noise(x):
    noise = 0.01 * jax.random.normal(jax.random.key(0), (3, *x.shape))
    return NET(descend(lambda y: NET(y).max(), x, noise))


def search_a_latent(x):
    basis = jax.random.normal(jax.random.key(0), (5, 64))
    flat = x.reshape(len(x), -1)
    latent = descend(lambda z: ((z @ basis - flat) ** 2).sum(), jnp.zeros((len(x), 5)))
    return NET((latent @ basis).reshape(x.shape))


def purify_one_by_one(x):
    return jax.lax.map(lambda image: purify(image[None])[0], x)


@pytest.mark.parametrize("network", [purify, purify_with_noise, search_a_latent, purify_one_by_one])
def test_optimisation_at_test_time_is_flagged(network):
    assert "loops inside" in warnings_of(network)


def test_loops_that_change_no_input_are_not_flagged():
    def one_by_one(x):
        return jax.lax.map(lambda image: NET(image[None])[0], x)

    def with_a_norm_of_weights(x):
        kernel = jnp.eye(64)
        power = jax.lax.scan(lambda u, _: (kernel @ u / 2, None), jnp.ones(64), None, length=3)[0]
        return NET(x) * (1 + power.sum())

    assert "loops inside" not in warnings_of(one_by_one) + warnings_of(with_a_norm_of_weights)


def test_a_network_with_varying_outputs_is_refused():
    calls = iter(range(1000))

    def draw(x):
        return np.float32(next(calls)) + np.zeros(len(x), np.float32)

    def fickle(x):
        noise = jax.pure_callback(draw, jax.ShapeDtypeStruct(x.shape[:1], jnp.float32), x)
        return NET(x) + jnp.where(jnp.arange(10) == 0, noise[:, None], 0.0)

    with pytest.raises(UserError, match="not deterministic"):
        attacks.evaluate(fickle, IMAGES, np.zeros_like(LABELS), QUICK, threat=THREAT)


def test_numbers_drawn_while_tracing_are_found():
    def network(images):
        return NET(images) + np.random.default_rng().normal(size=10).astype(np.float32)

    with pytest.raises(UserError, match="not deterministic"):
        warnings_of(network)


def test_square_that_beats_the_white_box_is_flagged():
    told = []
    sanity.after({"apgd-ce": 0.5, "square": 0.49}, told.append)
    sanity.after({"apgd-ce": 0.5, "square": 0.499}, told.append)
    sanity.after({"square": 0.1, "apgd-ce": 0.0}, told.append)
    assert len(told) == 1 and "broke a further 1.0%" in told[0]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES * 255, LABELS, r"lie in \[0, 1\], these range from .* to 25"),
        (IMAGES - 0.5, LABELS, r"put normalisation inside"),
        (IMAGES * np.nan, LABELS, "nan"),
        (IMAGES[0], LABELS, r"must be \(N, H, W, C\)"),
        (IMAGES[:0], LABELS[:0], "no images"),
        (IMAGES, LABELS[:-1], r"shape \(12,\)"),
        (IMAGES, LABELS.astype(np.float32), "integers"),
        (IMAGES, LABELS + 10, r"in 0 \.\. 9 for 10 logits"),
        (IMAGES, LABELS - 10, r"in 0 \.\. 9 for 10 logits"),
    ],
)
def test_bad_images_and_labels(images, labels, message):
    with pytest.raises(UserError, match=message) as caught:
        attacks.autoattack(NET, images, labels, threat=THREAT)
    assert "\n" not in str(caught.value)


def test_rounding_noise_beyond_the_unit_range_is_cut_off():
    images = IMAGES.copy()
    images[:, 0, 0], images[:, 1, 1] = np.nextafter(np.float32(1), 2), -1e-7
    report = attacks.evaluate(NET, images, LABELS, [], threat=THREAT)
    assert report.adversarial.min() == 0 and report.adversarial.max() == 1
    images[0, 0, 0] = 1.00001
    with pytest.raises(UserError, match=r"range from -1e-07 to 1\.00001"):
        attacks.evaluate(NET, images, LABELS, [], threat=THREAT)


def test_bad_networks_and_settings():
    with pytest.raises(UserError, match="NaN or infinity for 12 of 12"):
        attacks.autoattack(lambda x: NET(x) * jnp.nan, IMAGES, LABELS, threat=THREAT)
    with pytest.raises(UserError, match=r"return \(12, K\) floats"):
        attacks.autoattack(lambda x: NET(x)[:, 0], IMAGES, LABELS, threat=THREAT)
    with pytest.raises(UserError, match="epsilon must be a positive number"):
        attacks.autoattack(NET, IMAGES, LABELS, threat=attacks.linf(0))
    with pytest.raises(UserError, match="standard"):
        attacks.autoattack(NET, IMAGES, LABELS, threat=THREAT, version="standart")
    with pytest.raises(UserError, match="batch size 0"):
        attacks.autoattack(NET, IMAGES, LABELS, threat=THREAT, batch_size=0)
    with pytest.raises(UserError, match="cannot be compiled by JAX"):
        attacks.autoattack(lambda x: np.asarray(x)[:, 0, 0], IMAGES, LABELS, threat=THREAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": 8 / 255}, r"attacks\.linf\(8 / 255\)"),
        ({"attacks": QUICK[0]}, "must be a list"),
        ({"attacks": ["pgd"]}, "'pgd' is no attack"),
        ({"seed": 2**40}, "seed must be in"),
        ({"labels": LABELS.astype(np.uint64) + 2**32}, "labels must name classes"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(change, message):
    given = {"attacks": QUICK, "labels": LABELS, "threat": THREAT, **change}
    with pytest.raises(UserError, match=message) as caught:
        attacks.evaluate(NET, IMAGES, **given)
    assert "\n" not in str(caught.value)


def test_a_network_that_calls_back_to_python_allows_black_box_attacks_only():
    def calls_back(x):
        shape = jax.ShapeDtypeStruct((len(x), 10), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(NET(x)), shape, x)

    blind = (attacks.Square(steps=2),)
    assert "only Square can attack" in warnings_of(calls_back, blind)
    with pytest.raises(UserError, match="no gradient of the callback"):
        warnings_of(calls_back)


def test_noise_that_is_averaged_over_is_not_taken_for_mixing_the_batch():
    calls = iter(range(100_000))

    @jax.custom_vjp
    def noisy(x):
        draw = lambda x: np.float32(next(calls) % 7) + np.zeros_like(x)  # noqa: E731
        return x + jax.pure_callback(draw, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    noisy.defvjp(lambda x: (noisy(x), None), lambda _, slope: (slope,))
    network = as_network(lambda x: noisy(NET(x)))

    def warned_of(network):
        told = []
        logits = np.asarray(network(IMAGES))
        sanity.before(network, IMAGES, LABELS, logits, averaged=True, blind=False, warn=told.append)
        return " | ".join(told)

    assert warned_of(network) == ""
    assert "depend on the others" in warned_of(as_network(lambda x: NET(x) - NET(x).mean(0)))


def test_a_network_that_mixes_its_batch_is_flagged():
    assert "depend on the others" in warnings_of(lambda x: NET(x) - NET(x).mean(0))


def test_nan_gradients_do_not_make_a_network_robust():
    def cornered(x):
        # The slope of a square root is infinite at zero, and infinity times zero is NaN.
        return NET(x) + jnp.sqrt(jnp.maximum(x - 2.0, 0.0).sum((1, 2, 3)))[:, None]

    told = []
    report = attacks.evaluate(
        cornered, IMAGES, LABELS, [attacks.Pgd(), attacks.Square(steps=300)],
        threat=attacks.linf(0.3), callbacks=attacks.Callbacks(warn=told.append),
    )  # fmt: skip
    assert report.robust < 0.5 and "gradients are masked" in told[0]
    assert not np.isnan(report.adversarial).any()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 8.0, float("nan")])
def test_radii_are_checked_whatever_they_come_as(epsilon):
    with pytest.raises(UserError, match="epsilon must be"):
        attacks.evaluate(NET, IMAGES, LABELS, QUICK, threat=attacks.linf(np.float32(epsilon)))


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("version", attacks.VERSIONS)
def test_published_versions(norm, version):
    listed = attacks.published(version, norm)
    names = [attack.name for attack in listed]
    runs = {attack.name: attack.trials(10) for attack in listed}
    if version == "standard":
        assert names == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert runs["apgd-t"] == (5 if norm == "l1" else 9) and runs["fab-t"] == 9
    if version == "plus":
        assert runs["apgd-ce"] == runs["fab"] == 5 and len(names) == 6
    if version == "rand":
        assert [attack.eot for attack in listed] == [20, 20]


def test_more_targets_than_classes_and_a_network_of_two():
    variables = new_dense_net()

    def two(x):
        return dense_net(variables, x)[:, :2]

    labels = np.asarray(two(IMAGES).argmax(-1)).astype(np.int32)
    listed = (
        attacks.Apgd(name="apgd-ce", loss="ce", steps=5),
        attacks.Apgd(name="apgd-t", loss="targeted-dlr", steps=5, targets=9),
        attacks.Fab(name="fab-t", targets=9, steps=5),
        attacks.Square(steps=20),
    )
    assert [attack.trials(2) for attack in listed] == [1, 1, 1, 1]
    report = attacks.evaluate(two, IMAGES, labels, listed, threat=attacks.linf(0.3))
    assert report.natural == 1.0 and report.robust < 0.5
