"""ADMM: the projection, the published updates of Z and U, and the gradient of the penalty."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_nets import Net, described, random_weights, variables
from pruning_nets import quick_jit

from irp_jax.pruning import admm, magnitude

TINY = Net(a=4, b=3, skip=True)
KEPT = {"channel": {"a": 2, "b": 1}, "weight": {"first": 5, "third": 7, "second": 11}}


@pytest.mark.parametrize("regularity", ["channel", "weight"])
def test_the_projection_is_the_nearest_point_of_the_set(regularity):
    dense = described(TINY)
    kernels = magnitude.kernels(dense, random_weights(TINY, 2))
    if regularity == "weight":  # few enough for every subset to be tried
        kernels["first"] = np.where(np.arange(4) < 3, kernels["first"], 0.0).astype(np.float32)
        kernels["first"][0] = 0.0
    found = admm.project(dense, kernels, regularity, KEPT[regularity])
    if regularity == "channel":
        writers, channels, count = ("first", "third"), range(4), 2
        total = sum(float(np.sum(kernels[n] ** 2)) for n in writers)
        subsets = itertools.combinations(channels, count)
        best = min(
            total - sum(float(np.sum(kernels[n][..., list(s)] ** 2)) for n in writers)
            for s in subsets
        )
        distance = sum(float(np.sum((kernels[n] - found[n]) ** 2)) for n in writers)
        live = {c for n in writers for c in channels if np.any(found[n][..., c] != 0)}
    else:
        values, count = np.ravel(kernels["first"]), 5
        subsets = itertools.combinations(np.flatnonzero(values), count)
        best = min(np.sum(np.square(values)) - np.sum(np.square(values[list(s)])) for s in subsets)
        distance = np.sum(np.square(kernels["first"] - np.asarray(found["first"])))
        live = set(np.flatnonzero(found["first"]))
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
        found, state = update(gradients, state, weights)
        expected = g if z is None else g + rho * (w - z + u)
        np.testing.assert_allclose(found[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
        if z is not None:
            np.testing.assert_allclose(state.sparse[name], z, rtol=1e-6)
            np.testing.assert_allclose(state.dual[name], u, rtol=1e-5, atol=1e-6)
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

    def penalty(kernels):
        square = 0.0
        for name, kernel in kernels.items():
            gap = np.float64(kernel) - np.float64(state.sparse[name]) + np.float64(state.dual[name])
            square += np.sum(gap**2)
        return rho / 2 * square

    kernels = {n: np.float64(k) for n, k in magnitude.kernels(dense, weights).items()}
    for name, index in (("first", (0, 1, 0, 3)), ("third", (2, 2, 1, 0)), ("second", (1, 0, 3, 2))):
        up, down = (
            penalty({**kernels, name: kernels[name] + sign * 1e-3 * _unit(kernels[name], index)})
            for sign in (1, -1)
        )
        assert pulled[name]["kernel"][index] == pytest.approx((up - down) / 2e-3, rel=1e-4)


def _unit(array, index):
    unit = np.zeros_like(array)
    unit[index] = 1.0
    return unit
