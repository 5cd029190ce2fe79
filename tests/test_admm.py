"""ADMM: the projection, the published updates of Z and U, and the gradient of the penalty."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_nets import Net, described, random_weights, variables
from pruning_nets import quick_jit

from irp_jax.pruning import admm

TINY = Net(a=4, b=3, skip=True)
KEPT = {
    "channel": {"first": 2, "second": 1},
    "weight": {"first/kernel": 5, "third/kernel": 7, "second/kernel": 11},
}


PARTS = {
    "first": ("first/kernel", "third/kernel", "norm1/scale", "norm1/bias"),
    "second": ("second/kernel", "norm2/scale", "norm2/bias"),
}
"""Parameters of the channels of each group, except the kernels that read them."""


def square(parameters, group, channel):
    arrays = (parameters[name][..., channel] for name in PARTS[group])
    return sum(float(np.sum(np.square(array))) for array in arrays)


def test_the_penalty_of_a_channel_covers_all_of_its_parameters_and_no_others():
    graph, weights = described(TINY), variables(TINY)["params"]
    found = admm.pulled(graph, weights, "channel")
    assert set(found) == {part for parts in PARTS.values() for part in parts}
    assert set(admm.pulled(graph, weights, "weight")) == set(KEPT["weight"])


@pytest.mark.parametrize("group", ["first", "second"])
def test_the_projection_on_channels_is_the_nearest_point_of_the_set(group):
    graph, count = described(TINY), KEPT["channel"][group]
    parameters = admm.pulled(graph, random_weights(TINY, 2), "channel")
    found = admm.nearest_sparse(graph, parameters, "channel", KEPT["channel"])
    channels = range({"first": 4, "second": 3}[group])
    size = [square(parameters, group, channel) for channel in channels]
    best = min(sum(size) - sum(size[c] for c in s) for s in itertools.combinations(channels, count))
    gaps = jax.tree.map(np.subtract, parameters, found)
    distance = sum(square(gaps, group, channel) for channel in channels)
    assert sum(square(found, group, channel) > 0 for channel in channels) == count
    assert distance == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize("part", [part for parts in PARTS.values() for part in parts])
def test_every_parameter_of_a_channel_counts(part):
    graph = described(TINY)
    parameters = admm.pulled(graph, random_weights(TINY, 0), "channel")
    parameters = jax.tree.map(np.zeros_like, parameters)
    parameters[part][..., 2] = 1.0  # if all were zero, the first channel would be kept
    found = admm.nearest_sparse(graph, parameters, "channel", {"first": 1, "second": 1})
    np.testing.assert_array_equal(found[part], parameters[part])


def test_the_projection_on_weights_is_the_nearest_point_of_the_set():
    graph, count = described(TINY), KEPT["weight"]["first/kernel"]
    parameters = admm.pulled(graph, random_weights(TINY, 2), "weight")
    # The kernel is small, so that every subset can be tried.
    kernel = np.where(np.arange(4) < 3, parameters["first/kernel"], 0.0).astype(np.float32)
    kernel[0] = 0.0
    parameters["first/kernel"] = kernel
    found = admm.nearest_sparse(graph, parameters, "weight", KEPT["weight"])["first/kernel"]
    values = np.ravel(kernel)
    subsets = itertools.combinations(np.flatnonzero(values), count)
    best = min(np.sum(np.square(values)) - np.sum(np.square(values[list(s)])) for s in subsets)
    assert np.count_nonzero(found) == count
    assert np.sum(np.square(kernel - np.asarray(found))) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "updates", "factor"), [(30, 10, 1.3), (13, 10, 1.3**1.5), (3, 1, 1)]
)
def test_rho_grows_tenfold_however_often_it_does(steps, updates, factor):
    graph, rho = described(TINY), 0.25
    pull = admm.pull(graph, "weight", KEPT["weight"], rho=rho, start=0, stop=steps, updates=updates)
    weights = jax.tree.map(np.ones_like, random_weights(TINY, 0))
    zero, update = jax.tree.map(np.zeros_like, weights), jax.jit(pull.update)
    state, pulls = pull.init(weights), []
    for _ in range(steps):
        state = state._replace(dual=jax.tree.map(jnp.ones_like, state.dual))
        state = state._replace(sparse=jax.tree.map(jnp.zeros_like, state.sparse))
        found, state = update(zero, state, weights)
        # W - Z + U of a weight that is zero in Z.
        gap = 1.0 - state.sparse["second/kernel"] + state.dual["second/kernel"]
        pulls.append(float((found["second/kernel"] / gap)[1, 1, 3, 2]))
    ratios = [b / a for a, b in itertools.pairwise(pulls) if b != pytest.approx(a)]
    assert pulls[0] == pytest.approx(rho)
    assert ratios == pytest.approx([factor] * len(ratios), rel=1e-4)
    assert pulls[-1] == pytest.approx(rho * (1 if updates == 1 else 1.3**9), rel=1e-4)


def nearest(kernel, count):
    """Returns an array with all but its `count` largest entries set to zero, as a reference."""
    flat = np.ravel(kernel)
    out = np.zeros_like(flat)
    for index in sorted(range(flat.size), key=lambda i: -abs(flat[i]))[:count]:
        out[index] = flat[index]
    return out.reshape(np.shape(kernel))


def test_z_and_u_follow_the_published_updates_and_compile_once():
    graph, rho, name = described(TINY), 0.25, "second/kernel"
    count = KEPT["weight"][name]
    pull = admm.pull(graph, "weight", KEPT["weight"], rho=rho, start=2, stop=10, updates=3)
    update, state = jax.jit(pull.update), pull.init(variables(TINY)["params"])
    gradients = random_weights(TINY, 9)
    z = u = None
    for step in range(9):
        weights = random_weights(TINY, 20 + step)
        w, g = weights[name], gradients[name]
        if step == 2:
            z, u = nearest(w, count), np.zeros_like(w)
        elif step in (5, 8):
            z = nearest(w + u, count)
            u = u + w - z
            rho *= 1.3**4.5
        found, state = update(gradients, state, weights)
        expected = g if z is None else g + rho * (w - z + u)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
        if z is not None:
            np.testing.assert_allclose(state.sparse[name], z, rtol=1e-6)
            np.testing.assert_allclose(state.dual[name], u, rtol=1e-5, atol=1e-6)
        for untouched in set(gradients) - set(KEPT["weight"]):
            np.testing.assert_array_equal(found[untouched], gradients[untouched])
    assert update._cache_size() == 1
    assert np.any(u != 0)


def test_the_added_gradient_is_that_of_the_penalty():
    graph, rho = described(TINY), 0.5
    pull = admm.pull(graph, "channel", KEPT["channel"], rho=rho, start=0, stop=9, updates=1)
    first, weights = random_weights(TINY, 3), random_weights(TINY, 4)
    zero = jax.tree.map(jnp.zeros_like, weights)
    update = quick_jit(pull.update)
    _, state = update(zero, pull.init(first), first)
    state = state._replace(dual=jax.tree.map(lambda z: 0.3 * z + 0.1, state.dual))
    pulled, _ = update(zero, state, weights)

    def penalty(parameters):
        gaps = jax.tree.map(
            lambda w, z, u: np.sum((w - np.float64(z) + np.float64(u)) ** 2),
            parameters, state.sparse, state.dual,
        )  # fmt: skip
        return rho / 2 * sum(jax.tree.leaves(gaps))

    wide = jax.tree.map(np.float64, admm.pulled(graph, weights, "channel"))
    for name, index in (
        ("first/kernel", (0, 1, 0, 3)), ("third/kernel", (2, 2, 1, 0)),
        ("second/kernel", (1, 0, 3, 2)), ("norm1/scale", (1,)), ("norm2/bias", (2,)),
    ):  # fmt: skip
        step = 1e-3 * _unit(wide[name], index)
        up, down = (penalty({**wide, name: wide[name] + sign * step}) for sign in (1, -1))
        assert pulled[name][index] == pytest.approx((up - down) / 2e-3, rel=1e-4)
    for name in ("classifier/kernel", "classifier/bias"):
        np.testing.assert_array_equal(pulled[name], zero[name])


def _unit(array, index):
    unit = np.zeros_like(array)
    unit[index] = 1.0
    return unit
