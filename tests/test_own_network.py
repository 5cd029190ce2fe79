"""Networks of users, as objects and in files: used unmodified, or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irp_jax import models, traced
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.pruning import cost
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan

SHAPE = (8, 8, 2)


class Own(nn.Module):
    """A user's network with one unusual feature: a reused layer, an even kernel or a plain sum."""

    what: str

    @nn.compact
    def __call__(self, images, train):
        size = 2 if self.what == "even kernel" else 3
        second = nn.Conv(5, (3, 3), name="second")
        x = nn.Conv(5, (size, size), name="first")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(second(x))
        if self.what == "sum":
            x = x + nn.Conv(5, (3, 3), name="third")(images)
        if self.what == "twice":
            x = second(x)
        return nn.Dense(4, name="last")(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("what", "groups"),
    [
        ("twice", {"first": 5}),
        ("even kernel", {"first": 5, "second": 5}),
        ("sum", {"first": 5, "second": 5}),
    ],
)
def test_a_network_is_taken_as_it_is(what, groups):
    model = traced.trace(Own(what), SHAPE, classes=4)
    assert model.graph.groups == groups
    assert model.name == "Own" and model.spec == {"class": "Own"}
    assert traced.check(model) < 1e-4


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="has 4 logits, and the data has 3 classes"):
        traced.trace(Own(""), SHAPE, classes=3)


@pytest.mark.parametrize("method", ["lagrangian", "width"])
def test_a_network_of_one_layer_has_nothing_to_prune(method):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(4, name="only")(images.mean((1, 2)))

    graph = traced.trace(Linear(), SHAPE, classes=4).graph
    assert cost.total(graph) == cost.Cost(macs=2 * 4, params=2 * 4 + 4)
    said = "resnet20 has nothing to prune: .*only: the logits"
    with pytest.raises(UserError, match=said):
        make_plan(Config(budget="1", method=method), METHODS[method], graph, 1000)


# ---- FILE.py:NAME ----------------------------------------------------------------------------

LINEN = """
import dataclasses
import flax.linen as nn
from sibling import WIDTH

class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(WIDTH, (3, 3), name="a")(x))
        return nn.Dense(self.classes, name="out")(x.mean((1, 2)))

class Sized(nn.Module):
    width: int
    depth: int = 2

class Broken:
    def __init__(self):
        raise ValueError("no such luck\\nand more")

made = Net(4)
"""

NNX = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.a = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.out = nnx.Linear(6, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.a(x)).mean((1, 2)))
"""

EQUINOX = """
import equinox as eqx
import jax

class Net(eqx.Module):
    a: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, n_classes, key):
        keys = jax.random.split(key)
        self.a = eqx.nn.Conv2d(2, 6, 3, padding=1, key=keys[0])
        self.out = eqx.nn.Linear(6, n_classes, key=keys[1])

    def __call__(self, x):
        return self.out(jax.nn.relu(self.a(x)).mean((1, 2)))
"""


@pytest.fixture
def folder(tmp_path):
    sources = {"linen": LINEN, "nnx": NNX, "equinox": EQUINOX, "broken": "1 +", "quits": "exit(1)"}
    for name, source in sources.items():
        (tmp_path / f"{name}_net.py").write_text(source)
    (tmp_path / "sibling.py").write_text("WIDTH = 6")
    return tmp_path


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
def test_a_class_in_a_file_is_made_for_the_classes_of_the_data(folder, kind):
    name = f"{folder}/{kind}_net.py:Net"
    model = traced.named(name, 1.0, SHAPE, 4)
    assert list(model.graph.groups.values()) == [6]
    assert model.spec == {"file": name}
    assert cost.total(model.graph).macs == 64 * 9 * 2 * 6 + 6 * 4
    params, state = model.init(jax.random.key(0))
    logits, _ = model.network(params, state, jnp.zeros((2, *SHAPE)), train=False)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("kind", ["nnx", "equinox"])
def test_weights_that_a_network_has_from_the_beginning_follow_the_seed(folder, kind):
    def weights(seed):
        model = traced.named(f"{folder}/{kind}_net.py:Net", 1.0, SHAPE, 4, seed)
        return np.concatenate([leaf.ravel() for leaf in model.init(jax.random.key(9))[0].values()])

    np.testing.assert_array_equal(weights(0), weights(0))
    assert np.abs(weights(0) - weights(1)).max() > 1e-3


def test_an_instance_in_a_file_is_taken_as_it_is(folder):
    name = f"{folder}/linen_net.py:made"
    assert traced.named(name, 1.0, SHAPE, 4).graph.groups == {"a": 6}
    with pytest.raises(UserError, match="has 4 logits, and the data has 7 classes"):
        traced.named(name, 1.0, SHAPE, 7)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("linen_net.py:Nett", "unknown network in .*linen_net.py 'Nett': did you mean 'Net'"),
        ("linen_net.py:Sized", r"needs arguments \(width\): give them defaults, or make an inst"),
        ("linen_net.py:Broken", r"Broken cannot be made \(ValueError: no such luck\)"),
        ("linen_net.py", "give a file and a name in it"),
        ("linen_net.py:Net.x", "give a file and a name in it"),
        ("missing_net.py:Net", "no file .*missing_net.py"),
        ("broken_net.py:Net", r"broken_net.py cannot be run \(SyntaxError"),
        ("quits_net.py:Net", r"quits_net.py cannot be run \(SystemExit: 1\)"),
    ],
)
def test_what_cannot_be_had_of_a_file_is_said_in_one_line(folder, name, said):
    with pytest.raises(UserError, match=said) as found:
        models.from_file(f"{folder}/{name}", 4, 0)
    assert "\n" not in str(found.value)
