"""The channel graph of many networks: groups, exceptions, cost, and masked equals compact."""

import functools
import math
import os
import pty
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_nets import CASES, CLASSES, SHAPE
from pruning_nets import (
    abstract_variables,
    elements,
    kept_units,
    quick_jit,
    random_masks,
    trace,
    traced_macs,
    zeros,
)

from irp_jax import adapters, graph, traced
from irp_jax.errors import UserError
from irp_jax.pruning import compaction, cost, masks

NAMES = sorted(CASES)
LOGITS = "the logits"


@functools.cache
def model_of(name):
    return traced.trace(CASES[name].model, SHAPE, CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_are_those_found_by_hand(name):
    found = model_of(name).graph
    assert found.groups == CASES[name].groups
    assert {type(size) for size in found.groups.values()} <= {int}
    assert found.any_batch == CASES[name].any_batch
    assert (found.image_shape, found.classes) == (SHAPE, CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_channels_that_cannot_be_pruned_are_named_with_a_reason(name):
    found = model_of(name).graph.whole
    others = [whole for whole in found if whole.reason != LOGITS]
    expected = CASES[name].whole
    assert [(whole.name, whole.channels) for whole in others] == [(n, c) for n, c, _ in expected]
    for whole, (_, _, reason) in zip(others, expected, strict=True):
        assert reason in whole.reason


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_never_cut(name):
    """The weights of the layer that writes the logits have no mask either."""
    found = model_of(name).graph
    final = [layer for layer in found.layers if layer.final]
    assert final
    for layer in final:
        assert all(not layer.extents[axis].groups for axis in layer.writes)
        assert layer.channels({})[1] == CLASSES
        assert layer.kernel not in found.kernels
    assert LOGITS in {whole.reason for whole in found.whole}


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_that_of_a_count_by_hand(name):
    found, params = model_of(name).graph, abstract_variables(model_of(name))["params"]
    assert cost.total(found) == cost.Cost(macs=CASES[name].macs, params=elements(params))
    assert sum(row["macs"] for row in cost.table(found)) == CASES[name].macs


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_of_a_compact_network_is_that_of_its_arrays(name):
    model = model_of(name)
    variables = zeros(abstract_variables(model))
    for seed in range(2):
        logits = random_masks(model.graph, "channel", seed)
        cut = compaction.compact_params(model.graph, variables, compaction.keep_indices(logits))
        kept = kept_units(logits)
        assert model.graph.sizes({**cut["params"], **cut["batch_stats"]}) == kept
        jaxpr, logits = trace(
            lambda cut, x: model.network(cut["params"], cut["batch_stats"], x, train=False)[0],
            cut,
            jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32),
        )
        left = cost.Cost(macs=traced_macs(jaxpr), params=elements(cut["params"]))
        assert cost.total(model.graph, kept) == left
        assert logits.shape == (1, CLASSES)


def drawn(shapes, rng):
    """Returns random arrays: kernels of the usual scale, all others near one."""

    def draw(leaf):
        if len(leaf.shape) > 1:
            size = math.sqrt(2 * max(leaf.shape) / math.prod(leaf.shape))
            return rng.normal(0, size, leaf.shape).astype(leaf.dtype)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)

    return {name: draw(leaf) for name, leaf in shapes.items()}


def outcome(network, params, state, gates, found, images):
    """Returns logits in inference, and logits, new state and gradients in training."""
    key = jax.random.key(3)

    def loss(params, images):
        masked = masks.apply(found, params, gates)
        logits, new = network(masked, state, images, True, key)
        weight = jnp.cos(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)
        return (weight * logits).sum() + jnp.square(logits).sum(), (logits, new)

    gradients, (logits, new) = jax.grad(loss, (0, 1), has_aux=True)(params, images)
    inference, same = network(masks.apply(found, params, gates), state, images, False, key)
    assert set(same) == set(new) == set(state)
    return {
        "inference": inference, "logits": logits, "state": new, "gradient": gradients[0],
        "images": gradients[1],
    }  # fmt: skip


def assert_alike(found, expected):
    for path, a in jax.tree_util.tree_flatten_with_path(found)[0]:
        b = expected
        for key in path:
            b = b[key.key]
        assert a.shape == b.shape, path
        atol = 1e-3 * max(1e-3, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol, err_msg=str(path))


@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_compact(name):
    """The masked and the compact network agree.

    This covers logits in inference and in training, batch statistics, and gradients.
    """
    model, case = model_of(name), CASES[name]
    found, network = model.graph, model.network
    author = adapters.adapt(case.model, SHAPE).apply
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model)
    params, state = drawn(shapes["params"], rng), drawn(shapes["batch_stats"], rng)
    images = rng.uniform(size=(3, *SHAPE)).astype(np.float32)
    logits = random_masks(
        found, "channel", 0, {group: (size + 1) // 2 for group, size in found.groups.items()}
    )
    keep_indices = compaction.keep_indices(logits)
    small = (
        compaction.compact_params(found, params, keep_indices),
        compaction.compact_params(found, state, keep_indices),
    )

    @quick_jit
    def both(params, state, small, gates, images):
        masked = outcome(author, params, state, gates, found, images)
        if case.random:  # the shapes of random numbers depend on the channels left
            return masked, outcome(network, params, state, gates, found, images)
        return masked, outcome(network, *small, {}, found, images)

    masked, other = jax.device_get(both(params, state, small, masks.gates(logits), images))
    assert np.abs(masked["inference"] - masked["inference"][:1]).max() > 1e-4, "no image is lost"
    if case.random:
        assert_alike(other, masked)
        cut = quick_jit(lambda p, s, x: network(p, s, x, False)[0])(*small, images)
        assert_alike({"inference": cut}, masked)
        return
    # Pruned channels are not read, so their gradients are zero. They still have batch statistics.
    for array, gradient in masked["gradient"].items():
        alive = compaction.compact_params(found, {array: gradient}, keep_indices)[array]
        np.testing.assert_allclose(np.abs(gradient).sum(), np.abs(alive).sum(), rtol=1e-3)
    assert_alike(other, compaction.compact_params(found, masked, keep_indices))


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp"])
def test_a_derivative_of_its_authors_own_is_kept(name):
    """The custom derivative differs from that of the function, which is zero for rounding."""
    model, author = model_of(name), adapters.adapt(CASES[name].model, SHAPE).apply
    params = drawn(abstract_variables(model)["params"], np.random.default_rng(0))
    images, key = jnp.full((1, *SHAPE), 0.5), jax.random.key(0)

    @quick_jit
    def gradients(params):
        networks = (author, model.network)
        return [
            jax.grad(lambda p, n=n: n(p, {}, images, True, key)[0].sum())(params) for n in networks
        ]

    theirs, ours = gradients(params)
    for array in ("a/kernel", "b/kernel"):
        assert float(jnp.abs(theirs[array]).max()) > 1e-2
        np.testing.assert_allclose(ours[array], theirs[array], rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_and_of_one_image():
    model = model_of("residual")
    variables = abstract_variables(model)
    rng = np.random.default_rng(0)
    params, state = drawn(variables["params"], rng), drawn(variables["batch_stats"], rng)
    images = rng.uniform(size=(5, *SHAPE)).astype(np.float32)
    whole, _ = model.network(params, state, images, train=False)
    parts = [model.network(params, state, images[i : i + 1], train=False)[0] for i in range(5)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)


def test_dropout_draws_anew_with_every_key_and_in_training_alone():
    model = model_of("dropout")
    params = drawn(abstract_variables(model)["params"], np.random.default_rng(0))
    images = jnp.full((2, *SHAPE), 0.5)

    @functools.partial(quick_jit, static_argnums=0)
    def run(train, seed):
        return model.network(params, {}, images, train, jax.random.key(seed))[0]

    first, again, other = run(True, 0), run(True, 0), run(True, 1)
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    np.testing.assert_array_equal(run(False, 0), run(False, 1))


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_weights_are_those_of_kernels(name):
    """Each kernel except that of the logits has a mask, with the cost of its weights."""
    model = model_of(name)
    kernels = {layer.kernel for layer in model.graph.layers if layer.kernel and not layer.final}
    units = masks.units(model.graph, "weight")
    shapes = abstract_variables(model)["params"]
    assert units == {kernel: math.prod(shapes[kernel].shape) for kernel in kernels}
    assert cost.total(model.graph, units) == cost.total(model.graph)
    assert not set(units) & set(model.graph.groups), "a name is that of a group or of a kernel"


def test_two_traces_of_one_network_have_one_fingerprint_and_two_networks_two():
    prints = {name: model_of(name).graph.fingerprint for name in NAMES}
    assert len(set(prints.values())) == len(NAMES)
    again = traced.trace(CASES["residual"].model, SHAPE).graph
    assert again.fingerprint == prints["residual"]
    larger = traced.trace(CASES["residual"].model, (10, 8, 3)).graph
    assert larger.groups == again.groups and larger.fingerprint != again.fingerprint


# ---- what is refused -------------------------------------------------------------------------


def built(function, params=None, state=None, classes=None):
    """Returns the graph of a function (params, state, images, train, key) -> (logits, state)."""
    params = params or {"w": np.ones((3, CLASSES), np.float32)}
    return graph.build(function, params, state or {}, SHAPE, classes)


def linear(params, state, images, train, key):
    return images.mean((1, 2)) @ params["w"], state


def test_a_function_without_any_library_has_a_graph():
    found = built(linear)
    assert not found.groups and cost.total(found) == cost.Cost(macs=15, params=15)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda x: (x, x), "returns 2 arrays: it must return its logits"),
        (lambda x: x[0], r"returns shape \(5,\) for 2 images"),
        (lambda x: x.T, r"returns shape \(5, 2\) for 2 images"),
        (lambda x: x[:, None], r"returns shape \(2, 1, 5\) for 2 images"),
    ],
)
def test_what_returns_no_logits_is_refused(returned, said):
    def network(params, images):
        return returned(images.mean((1, 2)) @ params["w"])

    with pytest.raises(UserError, match=said):
        traced.trace((network, {"w": np.ones((3, CLASSES), np.float32)}), SHAPE)


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="has 5 logits, and the data has 7 classes"):
        built(linear, classes=7)


def test_a_state_that_changes_its_shape_is_refused():
    def network(params, state, images, train, key):
        logits, _ = linear(params, state, images, train, key)
        return logits, {"seen": jnp.concatenate([state["seen"], logits[:, 0]])}

    with pytest.raises(UserError, match="training gives seen another shape"):
        built(network, state={"seen": np.zeros(4, np.float32)})


def test_a_network_that_is_another_for_one_image_is_refused():
    def network(params, images):
        x = jax.nn.relu(images @ params["a"])
        if len(images) == 1:
            x = x - x.mean(-1, keepdims=True)
        x = x - x.mean(0)  # such that it can be traced for any number of images
        return x.mean((1, 2)) @ params["out"]

    params: Any = {"a": np.ones((3, 4), np.float32), "out": np.ones((4, CLASSES), np.float32)}
    model = traced.trace((network, params), SHAPE)
    assert model.graph.groups == {"a/out": 4}
    model.network(params, {}, jnp.zeros((3, *SHAPE)), train=False)
    with pytest.raises(UserError, match="with 1 images the channels of a/out cannot be pruned"):
        model.network(params, {}, jnp.zeros((1, *SHAPE)), train=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x / len(x),
        lambda x: x if len(x) > 2 else 2 * x,
        lambda x: x + np.ones((len(x), 1, 1, 1), np.float32),
    ],
    ids=["divided by it", "another branch", "a constant of its size"],
)
def test_a_network_that_uses_the_number_of_images_is_traced_for_each(use):
    random = np.random.default_rng(0)
    params = {
        "a/kernel": random.normal(size=(3, 6)).astype(np.float32),
        "b/kernel": random.normal(size=(6, 4)).astype(np.float32),
    }

    def network(params, images):
        return jax.nn.relu(use(images) @ params["a/kernel"]).mean((1, 2)) @ params["b/kernel"]

    model = traced.trace((network, params), SHAPE)
    assert not model.graph.any_batch
    for count in (1, 2, 5):
        images = random.uniform(size=(count, *SHAPE)).astype(np.float32)
        ours, _ = model.network(params, {}, images, train=False)
        np.testing.assert_allclose(ours, network(params, images), rtol=1e-5)


def test_names_do_not_tell_where_the_code_is():
    params = {"a": np.ones((3, 6), np.float32), "b": np.ones((6, 4), np.float32)}

    def network(params, images):
        x = jax.nn.relu(images @ (params["a"] - params["a"].mean(0)))
        return (x.mean((1, 2)) @ (params["b"] - params["b"].mean(1, keepdims=True))) * 1.0

    graph = traced.trace((network, params), SHAPE).graph
    said = [*graph.groups, *(layer.name for layer in graph.layers)]
    assert not any(".py" in name for name in said)


def test_functions_alike_but_for_their_derivative_rules_are_told_apart():
    @jax.custom_jvp
    def outer(x):
        return 2.0 * x

    @jax.custom_jvp
    def inner(x):
        return 2.0 * x

    outer.defjvp(lambda p, t: (outer(*p), inner(*p) * t[0]))
    inner.defjvp(lambda p, t: (inner(*p), 7.0 * t[0]))
    params = {"k": np.full((3, 4), 0.1, np.float32)}

    def network(params, images):
        return outer(outer(images) * images).mean((1, 2)) @ params["k"]

    model = traced.trace((network, params), SHAPE)
    images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)

    def second(function):
        first = jax.grad(lambda x: function(x).sum())
        return jax.grad(lambda x: jnp.square(first(x)).sum())(images)

    ours = second(lambda x: model.network(params, {}, x, train=False)[0])
    np.testing.assert_allclose(ours, second(lambda x: network(params, x)), rtol=1e-5)


def test_logits_that_are_no_numbers_are_refused():
    params = {"a/kernel": np.ones((3, 6), np.float32), "b/kernel": np.ones((6, 4), np.float32)}

    def network(params, images):
        return jnp.log(-jnp.abs(images @ params["a/kernel"]) - 1).mean((1, 2)) @ params["b/kernel"]

    with pytest.raises(UserError, match="not finite"):
        traced.check(traced.trace((network, params), SHAPE))


def test_logits_that_are_no_numbers_once_channels_are_masked_are_refused():
    params = {"a/kernel": np.ones((3, 6), np.float32), "b/kernel": np.ones((6, 4), np.float32)}

    def network(params, images):
        sizes = jnp.linalg.norm(params["b/kernel"], axis=1)
        x = jax.nn.relu(images @ params["a/kernel"]).mean((1, 2))
        return (x / sizes) @ params["b/kernel"]

    with pytest.raises(UserError, match="once channels are masked"):
        traced.check(traced.trace((network, params), SHAPE))


@pytest.mark.parametrize("where", ["loop", "branch", "derivative", "training"])
def test_a_nested_difference_changes_the_fingerprint(where):
    params = {"a/kernel": np.ones((3, 4), np.float32)}

    def made(factor):
        @jax.custom_vjp
        def straight(x):
            return factor * x

        straight.defvjp(lambda x: (factor * x, None), lambda _, g: (g,))
        inside = {
            "loop": lambda x: jax.lax.scan(lambda c, _: (c * factor, None), x, None, length=2)[0],
            "branch": lambda x: jax.lax.cond(x.sum() > 0, lambda x: x * factor, lambda x: x, x),
            "derivative": straight,
            "training": lambda x: x,
        }[where]

        def network(params, images, train):
            x = inside(images) * (factor if where == "training" and train else 1.0)
            return x.mean((1, 2)) @ params["a/kernel"]

        return traced.trace((network, params), SHAPE).fingerprint

    assert made(2.0) == made(2.0) != made(3.0)


TRACED = """
import jax, numpy as np
from irp_jax import traced

params = {"a/kernel": np.ones((3, 4), np.float32)}
network = lambda params, images: jax.nn.relu(images).mean((1, 2)) @ params["a/kernel"]
found = traced.trace((network, params), (8, 8, 3)).fingerprint
"""


def test_a_terminal_does_not_change_the_fingerprint():
    names = {}
    exec(TRACED, names)
    ours, theirs = pty.openpty()
    code = [sys.executable, "-c", TRACED + "print(found)"]
    subprocess.run(code, stdout=theirs, check=True)  # JAX writes in colour there
    assert os.read(ours, 1000).decode().strip() == names["found"]
    os.close(ours)
    os.close(theirs)
