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
KEPT = {"channel": {"a": 2, "b": 1}, "weight": {"first": 5, "third": 7, "second": 11}}


WRITERS = ("first", "norm1", "third")
"""The layers that write the channels of group a."""


def squares(units, names, channel):
    arrays = (array for name in names for array in units[name].values())
    return sum(float(np.sum(np.square(array[..., channel]))) for array in arrays)


def test_with_channels_all_that_writes_one_is_pulled_and_no_more():
    dense = described(TINY)
    units = admm.units(dense, variables(TINY)["params"], "channel")
    norm = {"scale", "bias"}
    assert {name: set(arrays) for name, arrays in units.items()} == {
        "first": {"kernel"}, "norm1": norm, "third": {"kernel"}, "second": {"kernel"}, "norm2": norm
    }  # fmt: skip
    units = admm.units(dense, variables(TINY)["params"], "weight")
    assert {name: set(arrays) for name, arrays in units.items()} == {
        name: {"kernel"} for name in ("first", "third", "second")
    }


@pytest.mark.parametrize("regularity", ["channel", "weight"])
def test_the_projection_is_the_nearest_point_of_the_set(regularity):
    dense = described(TINY)
    units = admm.units(dense, random_weights(TINY, 2), regularity)
    kernel = units["first"]["kernel"]
    filters = [squares(units, ("first", "third"), channel) for channel in range(4)]
    if regularity == "channel":  # a scale decides: the channel of the smallest filters stays
        units["norm1"]["scale"] = 10 * _unit(np.zeros(4, np.float32), int(np.argmin(filters)))
    else:  # few enough for every subset to be tried
        kernel = np.where(np.arange(4) < 3, kernel, 0.0).astype(np.float32)
        kernel[0] = 0.0
        units["first"]["kernel"] = kernel
    found = admm.project(dense, units, regularity, KEPT[regularity])
    if regularity == "channel":
        channels, count = range(4), 2
        size = [squares(units, WRITERS, channel) for channel in channels]
        best = min(sum(size) - sum(size[c] for c in s) for s in itertools.combinations(channels, 2))
        gaps = jax.tree.map(np.subtract, units, found)
        distance = sum(squares(gaps, WRITERS, channel) for channel in channels)
        live = {c for c in channels if squares(found, WRITERS, c) > 0}
        assert int(np.argmin(filters)) in live
    else:
        values, count = np.ravel(kernel), 5
        subsets = itertools.combinations(np.flatnonzero(values), count)
        best = min(np.sum(np.square(values)) - np.sum(np.square(values[list(s)])) for s in subsets)
        distance = np.sum(np.square(kernel - np.asarray(found["first"]["kernel"])))
        live = set(np.flatnonzero(found["first"]["kernel"]))
    assert len(live) == count
    assert distance == pytest.approx(float(best), rel=1e-4)


def nearest(kernel, count):
    """Reference: the largest `count` entries of an array, the others zero."""
    flat = np.ravel(kernel)
    out = np.zeros_like(flat)
    for index in sorted(range(flat.size), key=lambda i: -abs(flat[i]))[:count]:
        out[index] = flat[index]
    return out.reshape(np.shape(kernel))


def test_z_and_u_follow_the_published_updates_and_compile_once():
    dense, rho, name, count = described(TINY), 0.25, "second", KEPT["weight"]["second"]
    pull = admm.pull(dense, "weight", KEPT["weight"], rho=rho, start=2, interval=3)
    update, state = jax.jit(pull.update), pull.init(variables(TINY)["params"])
    gradients = random_weights(TINY, 9)
    z = u = None
    for step in range(9):
        weights = random_weights(TINY, 20 + step)
        w, g = weights[name]["kernel"], gradients[name]["kernel"]
        if step == 2:
            z, u = nearest(w, count), np.zeros_like(w)
        elif step in (5, 8):
            z = nearest(w + u, count)
            u = u + w - z
            rho *= 1.3
        found, state = update(gradients, state, weights)
        expected = g if z is None else g + rho * (w - z + u)
        np.testing.assert_allclose(found[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
        if z is not None:
            np.testing.assert_allclose(state.sparse[name]["kernel"], z, rtol=1e-6)
            np.testing.assert_allclose(state.dual[name]["kernel"], u, rtol=1e-5, atol=1e-6)
        for untouched in ("classifier", "norm1"):
            jax.tree.map(np.testing.assert_array_equal, found[untouched], gradients[untouched])
    assert update._cache_size() == 1
    assert np.any(u != 0)


def test_the_pull_is_the_gradient_of_the_penalty():
    dense, rho = described(TINY), 0.5
    pull = admm.pull(dense, "channel", KEPT["channel"], rho=rho, start=0, interval=100)
    first, weights = random_weights(TINY, 3), random_weights(TINY, 4)
    zero = jax.tree.map(jnp.zeros_like, weights)
    update = quick_jit(pull.update)
    _, state = update(zero, pull.init(first), first)
    state = state._replace(dual=jax.tree.map(lambda z: 0.3 * z + 0.1, state.dual))
    pulled, _ = update(zero, state, weights)

    def penalty(units):
        gaps = jax.tree.map(
            lambda w, z, u: np.sum((w - np.float64(z) + np.float64(u)) ** 2),
            units, state.sparse, state.dual,
        )  # fmt: skip
        return rho / 2 * sum(jax.tree.leaves(gaps))

    units = jax.tree.map(np.float64, admm.units(dense, weights, "channel"))
    for name, leaf, index in (
        ("first", "kernel", (0, 1, 0, 3)), ("third", "kernel", (2, 2, 1, 0)),
        ("second", "kernel", (1, 0, 3, 2)), ("norm1", "scale", (1,)), ("norm2", "bias", (2,)),
    ):  # fmt: skip
        step = 1e-3 * _unit(units[name][leaf], index)
        up, down = (
            penalty({**units, name: {**units[name], leaf: units[name][leaf] + sign * step}})
            for sign in (1, -1)
        )
        assert pulled[name][leaf][index] == pytest.approx((up - down) / 2e-3, rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, pulled["classifier"], zero["classifier"])


def _unit(array, index):
    unit = np.zeros_like(array)
    unit[index] = 1.0
    return unit
