"""Adapted networks of every library give the same results as in their own library."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from irp_jax import adapters
from irp_jax.errors import UserError
from irp_jax.graph import build, network
from irp_jax.pruning import compaction

eqx = pytest.importorskip("equinox")

SHAPE = (6, 6, 3)
KEY = jax.random.key(3)
IMAGES = jax.random.uniform(jax.random.key(5), (4, *SHAPE))


class Linen(linen.Module):
    """Two convolutions, batch normalization and dropout."""

    rate: float = 0.5

    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(8, (3, 3), name="conv1")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train, name="norm")(x))
        x = linen.relu(linen.Conv(12, (3, 3), name="conv2")(x)).mean((1, 2))
        x = linen.Dropout(self.rate, deterministic=not train)(x)
        return linen.Dense(5, name="out")(x)


class Deterministic(linen.Module):
    """Dropout alone, with the keyword `deterministic` instead of `train`."""

    @linen.compact
    def __call__(self, x, deterministic=True):
        x = linen.relu(linen.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        x = linen.Dropout(0.5, deterministic=deterministic)(x)
        return linen.Dense(5, name="out")(x)


class Nnx(nnx.Module):
    """Two convolutions, batch normalization and two dropouts."""

    def __init__(self, rngs, rate=0.0):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 12, (3, 3), rngs=rngs)
        self.first = nnx.Dropout(rate, rngs=rngs)
        self.second = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = self.first(nnx.relu(self.norm(self.conv1(x))))
        x = nnx.relu(self.conv2(x)).mean((1, 2))
        return self.out(self.second(x))


class Equinox(eqx.Module):
    """Two convolutions and dropout, for one image (C, H, W)."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(8, 12, 3, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(12, 5, key=keys[2])

    def __call__(self, x, key=None):
        x = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x)))).mean((1, 2))
        return self.out(self.dropout(x, key=key))


class Stateful(eqx.Module):
    """Equinox batch normalization, whose mode "batch" has a counter in its state."""

    conv1: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, key, mode, axis="batch"):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis, mode=mode)
        self.conv2 = eqx.nn.Conv2d(8, 12, 3, key=keys[1])
        self.out = eqx.nn.Linear(12, 5, key=keys[2])

    def __call__(self, x, state):
        x, state = self.norm(self.conv1(x), state)
        x = jax.nn.relu(self.conv2(jax.nn.relu(x))).mean((1, 2))
        return self.out(x), state


def stateful(mode="batch", axis="batch"):
    return eqx.nn.make_with_state(Stateful)(jax.random.key(0), mode, axis)


def apply(variables, images):
    x = images.reshape(len(images), -1)
    x = jax.nn.relu(x @ variables["hidden"]["w"] * variables["scale"])
    return x @ variables["out"][0] + variables["out"][1]


def function_variables():
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    width = int(np.prod(SHAPE))
    # A Python number and integers must not become parameters.
    return {
        "hidden": {"w": draw(width, 8)}, "out": [draw(8, 5), draw(5)], "scale": 0.1,
        "unused": np.arange(3),
    }  # fmt: skip


def start(adapted):
    """Returns the arrays of a network, made under jit, with random running statistics."""
    params, state = jax.jit(adapted.init)(jax.random.key(0))
    random = np.random.default_rng(1)
    for name, array in state.items():
        if jnp.issubdtype(array.dtype, jnp.floating):
            state[name] = jnp.asarray(random.uniform(0.5, 1.0, array.shape), array.dtype)
    return params, state


def close(some, others):
    assert set(some) == set(others)
    for name, array in some.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-5, atol=1e-5, err_msg=name)


def agree(adapted, own, groups):
    """Checks a network and its traced form against its own library, in both modes and compacted."""
    params, state = start(adapted)
    graph = build(adapted.apply, params, state, SHAPE, 5)
    again = network(adapted.apply, graph, params, state)
    for train in (False, True):
        logits, after = own(params, state, train)
        assert logits.shape == (len(IMAGES), 5)
        for run in (adapted.apply, again):
            run = jax.jit(run, static_argnums=3)
            found, new = run(params, state, IMAGES, train, KEY)
            close({"logits": found}, {"logits": logits})
            close(new, after)
            assert {n: a.dtype for n, a in new.items()} == {n: a.dtype for n, a in state.items()}
    assert set(groups) <= set(graph.groups)
    assert compaction.check(graph, again, params, state) <= compaction.TOLERANCE


def draws(model):
    """Checks that dropout depends on the key, and is active in training alone."""
    adapted = adapters.adapt(model, SHAPE)
    params, state = adapted.init(jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, key):
        return adapted.apply(params, state, IMAGES, train, key)[0]

    one, other = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(run(True, one), run(True, one))
    assert np.abs(run(True, one) - run(True, other)).max() > 1e-3
    np.testing.assert_array_equal(run(False, one), run(False, other))


# ---- each kind -------------------------------------------------------------------------------


def test_linen():
    adapted = adapters.adapt(Linen(), SHAPE)
    assert (adapted.kind, adapted.name, adapted.image_shape) == ("linen", "Linen", SHAPE)
    shapes, others = adapters.shapes(adapted)
    assert shapes["conv1/kernel"].shape == (3, 3, 3, 8)
    assert set(others) == {"batch_stats/norm/mean", "batch_stats/norm/var"}

    def own(params, state, train):
        nested = flax.traverse_util.unflatten_dict(params, "/")
        variables = {"params": nested, **flax.traverse_util.unflatten_dict(state, "/")}
        if not train:
            return Linen().apply(variables, IMAGES, False), state
        logits, new = Linen().apply(
            variables, IMAGES, True, rngs={"dropout": KEY}, mutable=["batch_stats"]
        )
        return logits, flax.traverse_util.flatten_dict(new, sep="/")

    agree(adapted, own, ["conv1", "conv2"])


def test_nnx():
    adapted = adapters.adapt(Nnx(nnx.Rngs(0)), SHAPE)
    assert (adapted.kind, adapted.name) == ("nnx", "Nnx")
    assert set(adapters.shapes(adapted)[1]) == {"norm/mean", "norm/var"}

    def own(params, state, train):
        model = Nnx(nnx.Rngs(0))
        model.norm.mean[...], model.norm.var[...] = state["norm/mean"], state["norm/var"]
        logits = model(IMAGES) if train else (model.eval(), model(IMAGES))[1]
        return logits, {"norm/mean": model.norm.mean[...], "norm/var": model.norm.var[...]}

    agree(adapted, own, ["conv1", "conv2"])


def test_equinox():
    model = Equinox(jax.random.key(0))
    adapted = adapters.adapt(model, SHAPE)
    assert (adapted.kind, adapted.name) == ("equinox", "Equinox")
    assert adapters.shapes(adapted)[0]["conv1/weight"].shape == (8, 3, 3, 3)
    assert adapters.shapes(adapted)[1] == {}

    def own(params, state, train):
        images = IMAGES.transpose(0, 3, 1, 2)
        if train:
            return jax.vmap(model)(images, jax.random.split(KEY, len(images))), {}
        return jax.vmap(eqx.nn.inference_mode(model))(images), {}

    agree(adapted, own, ["conv1", "conv2"])


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_with_state(mode):
    model, memory = stateful(mode)
    adapted = adapters.adapt((model, memory), SHAPE)
    names = {"batch": "norm/batch_state_index", "ema": "norm/ema_state_index"}
    assert {f"{names[mode]}/0", f"{names[mode]}/1"} < set(adapters.shapes(adapted)[1])

    def own(params, state, train):
        index = model.norm.batch_state_index or model.norm.ema_state_index
        values = (state[f"{names[mode]}/0"], state[f"{names[mode]}/1"])
        now = jax.tree.map(lambda leaf: leaf, memory).set(index, values)
        run = model if train else eqx.nn.inference_mode(model)
        logits, now = jax.vmap(run, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(
            IMAGES.transpose(0, 3, 1, 2), now
        )
        new = dict(zip((f"{names[mode]}/0", f"{names[mode]}/1"), now.get(index), strict=True))
        rest = {"norm/batch_counter": 1} if mode == "batch" else {"norm/ema_first_time_index": 0}
        return logits, {**state, **new, **rest} if train else state

    agree(adapted, own, ["conv1", "conv2"])


def test_function():
    variables = function_variables()
    adapted = adapters.adapt((apply, variables), SHAPE)
    assert (adapted.kind, adapted.name) == ("function", "apply")
    assert set(adapters.shapes(adapted)[0]) == {"hidden/w", "out/0", "out/1"}
    agree(adapted, lambda params, state, train: (apply(variables, IMAGES), {}), ["hidden"])


# ---- keys and keywords -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [Linen(), Deterministic(), Nnx(nnx.Rngs(0), 0.5), Equinox(jax.random.key(0))],
    ids=lambda model: type(model).__name__,
)
def test_dropout_follows_the_key(model):
    draws(model)


def test_each_nnx_dropout_has_its_own_mask():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.one, self.other = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            ones = jnp.ones((len(x), 50))
            return (self.one(ones) - self.other(ones)) * self.scale[...]

    adapted = adapters.adapt(Twice(nnx.Rngs(0)), SHAPE)
    assert np.abs(adapted.apply(*adapted.init(KEY), IMAGES, True, KEY)[0]).max() > 0


def test_each_image_of_equinox_has_its_own_mask():
    ones = jnp.ones((4, *SHAPE))
    adapted = adapters.adapt(Equinox(jax.random.key(0)), SHAPE)
    logits, _ = adapted.apply(*adapted.init(KEY), ones, True, KEY)
    assert np.ptp(np.asarray(logits), axis=0).max() > 1e-3


def test_function_with_keywords():
    def noisy(variables, images, *, training, key=None):
        logits = apply(variables, images)
        assert training == (key is not None)
        return logits if key is None else logits + jax.random.normal(key, logits.shape)

    draws((noisy, function_variables()))
    draws((functools.partial(noisy), function_variables()))


def test_function_that_must_have_a_key():
    def noisy(variables, images, key):
        return apply(variables, images) + jax.random.normal(key, (len(images), 5))

    draws((noisy, function_variables()))


# ---- weights ---------------------------------------------------------------------------------


def test_linen_weights_are_those_of_init():
    params, _ = adapters.adapt(Linen(), SHAPE).init(KEY)
    want = Linen().init(KEY, IMAGES, train=False)["params"]
    close(params, flax.traverse_util.flatten_dict(want, sep="/"))


@pytest.mark.parametrize("frozen", [False, True])
def test_linen_variables(frozen):
    variables = Linen().init(jax.random.key(9), IMAGES, train=False)
    given = {"params": variables["params"]}  # batch statistics are initialised
    adapted = adapters.adapt(Linen(), SHAPE, flax.core.freeze(given) if frozen else given)
    for key in (KEY, jax.random.key(4)):
        params, state = jax.jit(adapted.init)(key)
        close(params, flax.traverse_util.flatten_dict(given["params"], sep="/"))
        close(state, {"batch_stats/norm/mean": np.zeros(8), "batch_stats/norm/var": np.ones(8)})
    adapted = adapters.adapt(Linen(), SHAPE, variables)
    assert set(adapted.init(KEY)[1]) == {"batch_stats/norm/mean", "batch_stats/norm/var"}


def test_weights_are_copies():
    model = Nnx(nnx.Rngs(0))
    adapted = adapters.adapt(model, SHAPE)
    params, _ = adapted.init(KEY)
    for array in params.values():
        array.delete()  # as donation does
    assert np.isfinite(model(IMAGES)).all()
    assert np.isfinite(adapted.init(KEY)[0]["out/kernel"]).all()


def test_linen_integers_are_state():
    class Sorted(linen.Module):
        @linen.compact
        def __call__(self, x):
            order = self.param("order", lambda key: jnp.arange(3)[::-1])
            self.sow("intermediates", "seen", x)
            return linen.Dense(5)(x.mean((1, 2))[:, order])

    adapted = adapters.adapt(Sorted(), SHAPE)
    params, state = adapted.init(KEY)
    assert set(params) == {"Dense_0/kernel", "Dense_0/bias"}
    assert set(state) == {"params/order"}
    _, new = adapted.apply(params, state, IMAGES, True, KEY)
    close(new, state)


def test_nnx_counters_are_state_and_records_are_not():
    class Recording(nnx.Module):
        def __init__(self, rngs):
            self.steps = nnx.Variable(jnp.zeros((), jnp.int32))
            self.out = nnx.Linear(3, 5, rngs=rngs)

        def __call__(self, x):
            self.steps[...] += 1
            self.seen = nnx.Intermediate(x)
            return self.out(x.mean((1, 2)))

    adapted = adapters.adapt(Recording(nnx.Rngs(0)), SHAPE)
    params, state = adapted.init(KEY)
    assert set(params) == {"out/kernel", "out/bias"}
    assert adapted.apply(params, state, IMAGES, True, KEY)[1] == {"steps": 1}
    assert adapted.apply(params, state, IMAGES, False, KEY)[1] is state


def test_one_array_alone():
    weights = jnp.ones((3, 5))
    adapted = adapters.adapt((lambda w, x: x.mean((1, 2)) @ w, weights), SHAPE)
    assert set(adapted.init(KEY)[0]) == {"params"}


# ---- refusals --------------------------------------------------------------------------------


class Unswitched(linen.Module):
    """Applies dropout in inference, too."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(5)(x.reshape(len(x), -1))
        return linen.Dropout(0.5, deterministic=False)(x)


class Always(linen.Module):
    """Updates its statistics in inference, too."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(x)
        return linen.Dense(5)(x.reshape(len(x), -1))


def clashing():
    clash = {"a/b": {"c": np.ones(3, np.float32)}, "a": {"b/c": np.ones(3, np.float32)}}
    return (lambda v, x: x.mean((1, 2)) * v["a"]["b/c"]), clash


REFUSED = {
    "class of linen": (lambda: Linen, "Linen is a class of flax.linen: give an instance"),
    "class of nnx": (lambda: Nnx, "Nnx is a class of flax.nnx: give an instance"),
    "class of equinox": (lambda: Equinox, "Equinox is a class of equinox: give an instance"),
    "anything else": (lambda: {"a": 1}, "type builtins.dict is not known: give a flax.linen"),
    "pair of no function": (lambda: (1, 2), "type builtins.tuple is not known"),
    "linen in a pair": (lambda: (Linen(), {}), "its weights as variables"),
    "nnx in a pair": (lambda: (Nnx(nnx.Rngs(0)), {}), "give the module alone"),
    "equinox in a pair": (lambda: (Equinox(KEY), {}), "with its equinox.nn.State"),
    "state is missing": (lambda: stateful()[0], "give the pair that equinox.nn.make_with_state"),
    "other axis": (lambda: stateful(axis="i"), "the batch axis of Equinox networks is 'batch'"),
    "draws in inference": (Unswitched, "random numbers in training alone; give its call a keyword"),
    "state in inference": (Always, "change its state in training alone; give its call a keyword"),
    "names clash": (clashing, "two arrays of the network are named 'a/b/c', at "),
    "nothing to train": (lambda: (lambda v, x: x, {}), "there is nothing to train"),
    "shapes in linen": (
        lambda: linen.Sequential([lambda x: x.reshape(7, -1), linen.Dense(5)]),
        r"cannot be built for images of shape \(6, 6, 3\): TypeError: ",
    ),
    "shapes in a function": (
        lambda: (lambda v, x: x @ v, np.ones((4, 5), np.float32)),
        r"<lambda> cannot be run in inference on images of shape \(6, 6, 3\): TypeError: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    model, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        adapters.adapt(model(), SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 0), (1, 6, 6, 3)])
def test_refused_image_shape(shape):
    with pytest.raises(UserError, match=r"give \(height, width, channels\)"):
        adapters.adapt(Linen(), shape)


@pytest.mark.parametrize(
    "model", [Nnx(nnx.Rngs(0)), Equinox(jax.random.key(0)), (apply, {})], ids=["nnx", "eqx", "pair"]
)
def test_weights_given_twice(model):
    with pytest.raises(UserError, match="leave variables out"):
        adapters.adapt(model, SHAPE, {"params": {}})


def test_linen_variables_that_do_not_fit():
    variables = Linen().init(KEY, IMAGES, train=False)
    params = variables["params"]
    for given, message in (
        ([], "variables are of type list: give "),
        (params, "variables are a dict of conv1, conv2, norm: give "),
        ({"params": params, "cache": {}}, "have a collection 'cache', the network has batch_stats"),
        ({"params": {**params, "more": jnp.ones(1)}}, "the network lacks params/more"),
        ({"params": {**params, "out": {}}}, "the variables lack params/out/bias"),
        (
            {"params": {**params, "out": {"bias": jnp.ones(4), "kernel": jnp.ones((12, 4))}}},
            r"params/out/bias has shape \(4,\) in the variables and \(5,\) in the network",
        ),
    ):
        with pytest.raises(UserError, match=message):
            adapters.adapt(Linen(), SHAPE, given)
