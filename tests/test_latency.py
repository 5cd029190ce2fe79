"""Latency as a cost: the sum by hand, the budget it meets, a table's origin, and measuring one."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from budget_nets import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_nets import kept_units, named
from scipy.interpolate import RegularGridInterpolator

import irp_jax as irp
from irp_jax import __version__, latency, models, traced
from irp_jax.cli import latency as command
from irp_jax.cli import train
from irp_jax.config import Config, check, identity
from irp_jax.errors import UserError
from irp_jax.export import artifact, layers, measure
from irp_jax.pruning import cost, mask_rules, masks, uniform
from irp_jax.pruning.latency_table import LatencyTable, LayerLatency, from_json, rising

MULTIPLE = 2


def table_of(graph, **others):
    """Returns a table with latencies that rise in uneven steps."""
    rng = np.random.default_rng(0)
    entries = []
    for layer in graph.layers:
        knots = [tuple(sorted({1, -(-size // 2), size})) for size in layer.channels({})]
        steps = rng.uniform(0, 900, tuple(map(len, knots)))
        entries.append(
            LayerLatency(
                layers=(layer.name,), channels_in=knots[0], channels_out=knots[1],
                nanoseconds=steps.cumsum(0).cumsum(1),
            )
        )  # fmt: skip
    about = {
        "model": "x", "image_shape": graph.image_shape, "fingerprint": graph.fingerprint,
        "device": latency.device_of("jax"), "runtime": "jax",
        "runtime_version": latency.version_of("jax"), "threads": 1,
        "irp_jax_version": __version__, "multiple": MULTIPLE, "overhead": 5000.0, "scale": 1.25,
        "per_value": 0.5, "layers": tuple(entries),
    }  # fmt: skip
    return LatencyTable(**{**about, **others})


TABLE = table_of(TINY)
GRAPH = TABLE.attached(TINY)
COUNTS = st.fixed_dictionaries({n: st.integers(1, size) for n, size in TINY.groups.items()})


def by_hand(kept):
    """Returns nanoseconds with SciPy's interpolation of the table."""
    padded = {n: min(-(-k // MULTIPLE) * MULTIPLE, TINY.groups[n]) for n, k in kept.items()}
    total = TABLE.overhead
    for layer, entry in zip(TINY.layers, TABLE.layers, strict=True):
        counts = layer.channels(padded)
        axes = [(entry.channels_in, 0), (entry.channels_out, 1)]
        long = [(knots, axis) for knots, axis in axes if len(knots) > 1]
        values = entry.nanoseconds.squeeze(tuple(a for k, a in axes if len(k) == 1))
        grid = RegularGridInterpolator([knots for knots, _ in long], values)
        total += TABLE.scale * grid([counts[axis] for _, axis in long])[0]
        total += TABLE.per_value * layer.uses * counts[1]
    return total


@given(COUNTS)
@settings(max_examples=30, deadline=None)
def test_latency_is_the_interpolated_sum_and_alike_for_whole_numbers_and_floats(kept):
    assert cost.total(GRAPH, kept).latency == pytest.approx(by_hand(kept), abs=1)
    floats = {name: jnp.float32(count) for name, count in kept.items()}
    exact = cost.total(GRAPH, kept).latency / cost.total(GRAPH).latency
    assert float(cost.ratio(GRAPH, "latency", floats)) == pytest.approx(exact, rel=1e-4)


def test_every_channel_has_a_marginal_cost():
    floats = {name: jnp.float32(size) for name, size in TINY.groups.items()}
    slopes = jax.grad(lambda counts: cost.ratio(GRAPH, "latency", counts))(floats)
    assert all(0 < float(slope) < 1 for slope in slopes.values())


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_budgets_of_latency_are_met_and_free_channels_are_used(share):
    limit = int(share * cost.total(GRAPH).latency)
    rng = np.random.default_rng(1)
    logits = {n: rng.normal(size=m.shape) for n, m in masks.init(GRAPH, "channel").items()}
    kept = kept_units(mask_rules.best_within(GRAPH, logits, "channel", "latency", limit))
    assert cost.total(GRAPH, kept).latency <= limit
    for name, size in TINY.groups.items():
        more = {**kept, name: kept[name] + 1}
        assert kept[name] == size or cost.total(GRAPH, more).latency > limit
        assert kept[name] == size or kept[name] % MULTIPLE == 0
    even = uniform.keep_counts(GRAPH, "channel", "latency", limit)
    assert cost.total(GRAPH, even).latency <= limit


def test_the_lagrangian_follows_the_latency():
    rule = mask_rules.lagrangian(GRAPH, "channel", "latency", lambda step: jnp.float32(0.7))
    logits = masks.init(GRAPH, "channel")
    state = rule.init(logits)
    rng = np.random.default_rng(0)
    gradients = {n: jnp.asarray(rng.normal(size=m.shape), jnp.float32) for n, m in logits.items()}
    for _ in range(3):
        updates, state = rule.update(gradients, state, logits)
        logits = jax.tree.map(jnp.add, logits, updates)
    kept = {name: int((m > 0).sum()) for name, m in logits.items()}
    assert 0.5 < cost.total(GRAPH, kept).latency / cost.total(GRAPH).latency <= 0.7


def test_rising_times_stay_and_others_become_so():
    rng = np.random.default_rng(0)
    sound = rng.uniform(size=(4, 5)).cumsum(0).cumsum(1)
    np.testing.assert_array_equal(rising(sound), sound)
    noisy = rising(rng.uniform(size=(4, 5)))
    assert (np.diff(noisy, axis=0) >= 0).all() and (np.diff(noisy, axis=1) >= 0).all()


def test_a_table_of_something_else_is_refused_in_one_line(tmp_path):
    path = tmp_path / "table.json"
    model = dataclasses.replace(named("resnet8", 1.0, (8, 8, 1), 10), graph=TINY)
    latency.save(TABLE, path)
    again, multiple = latency.attached(model, path)
    assert again.graph.latency is not None and multiple == MULTIPLE
    assert again.graph.latency({}) == pytest.approx(cost.total(GRAPH).latency, abs=10)
    other = dataclasses.replace(TABLE, device="a phone")
    latency.save(other, path)
    with pytest.raises(UserError, match=r"a phone.*--latency-device"):
        latency.attached(model, path)
    latency.attached(model, path, "a phone")
    latency.save(dataclasses.replace(TABLE, runtime_version="0"), path)
    with pytest.raises(UserError, match=r"jax 0.*bin/latency"):
        latency.attached(model, path)
    latency.save(dataclasses.replace(TABLE, fingerprint="0"), path)
    with pytest.raises(UserError, match="bin/latency"):
        latency.attached(model, path)
    with pytest.raises(UserError, match="bin/latency"):
        latency.load(tmp_path / "none.json")


@pytest.mark.parametrize("key", ["layers", "multiple", "image_shape", "scale"])
def test_a_damaged_table_is_refused(tmp_path, key):
    found = TABLE.to_json()
    assert from_json(found).to_json() == found
    for value in (None, "x", -1):
        path = tmp_path / "table.json"
        path.write_text(json.dumps({**found, key: value}))
        with pytest.raises(UserError, match="bin/latency"):
            latency.load(path)


def test_what_latency_needs_is_said():
    with pytest.raises(UserError, match="--latency-table"):
        check(Config(cost="latency"))
    with pytest.raises(UserError, match="--granularity"):
        check(Config(cost="latency", latency_table="t.json", granularity="weight"))


def test_a_run_is_of_the_content_of_its_table(tmp_path):
    path = tmp_path / "table.json"
    config = Config(cost="latency", latency_table=str(path))
    latency.save(TABLE, path)
    before = identity(config)
    latency.save(dataclasses.replace(TABLE, overhead=6000.0), path)
    assert identity(config) != before


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_a_layer_alone_writes_what_it_writes_in_the_network(name):
    for layer in named(name, 0.5, (32, 32, 3), 10).graph.layers:
        channels = layer.channels({})
        subject = layers.single(layer, *channels)
        image = jax.ShapeDtypeStruct((1, *subject.image_shape), jnp.float32)
        out = jax.eval_shape(subject.apply, subject.arrays, image)
        assert out.size == layer.uses * channels[1], layer.name
        weights = jax.tree.leaves(subject.arrays)[0].size
        assert weights == layer.weights({}), layer.name


NET = """
import flax.linen as nn
import jax.numpy as jnp

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3), name="a")(x))
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="b")(x))
        return nn.Dense(10, name="c")(x.mean((1, 2)))
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Returns the table that the command measures of a network in net.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    command.latency([*SAME, "--out=table.json", "--rounds=2", "--multiple=2"])
    return latency.load("table.json")


SAME = ["--model=net.py:Net", "--dataset=digits"]
BUDGETED = [*SAME, "--cost=latency", "--latency-table=table.json", "--budget=0.7"]


def sound(measured):
    """Returns a table of the same device with times that do not depend on it."""
    graph = irp.describe(models.from_file("net.py:Net", 10, 0), (8, 8, 1))
    facts = ("device", "runtime", "runtime_version")
    return graph, table_of(graph, **{name: getattr(measured, name) for name in facts})


def test_the_command_measures_each_layer_and_a_dry_run_shows_the_budget(measured, capsys):
    assert [entry.layers for entry in measured.layers] == [("a",), ("b",), ("c",)]
    layer = measured.layers[1]
    assert layer.channels_in == (2, 4, 6, 8) and layer.channels_out == (2, 4, 6)
    assert measured.runtime == "onnxruntime" and measured.threads == 1
    assert {row["fitted"] for row in measured.checks} == {True, False}
    graph, table = sound(measured)
    latency.save(table, "table.json")
    train.train([*BUDGETED, "--dry-run"])
    shown = re.search(r"([0-9.]+) ms", capsys.readouterr().out.partition("budget ")[2])
    assert shown
    dense = table.attached(graph).latency({})
    assert float(shown[1]) == pytest.approx(0.7 * dense / 1e6, abs=1e-3)


@pytest.mark.slow
def test_a_network_is_trained_for_a_table_and_exported_as_it_says(measured):
    graph, table = sound(measured)
    latency.save(table, "table.json")
    train.train([*BUDGETED, "--epochs=2", "--train-images=128", "--workdir=run"])
    network = irp.load("run", model="net.py:Net")
    with open("run/results.json") as file:
        found = json.load(file)
    assert found["budget"]["kind"] == "latency" and found["cost"]["latency_ratio"] <= 0.7
    assert found["cost"]["latency"] == table.attached(graph).latency(found["keep_counts"])
    assert network.record["multiple"] == MULTIPLE
    network.export("net.onnx", model="net.py:Net")
    sizes = {
        size
        for array in onnx.load("net.onnx").graph.initializer
        if len(array.dims) == 4
        for size in array.dims[:2]
    }
    padded = {
        min(-(-n // MULTIPLE) * MULTIPLE, graph.groups[g]) for g, n in network.keep_counts.items()
    }
    assert padded <= sizes and artifact.load("net.onnx").facts["multiple"] == str(MULTIPLE)


def test_jax_is_measured_too():
    model = traced.trace(two_products(), (4, 4, 1))
    table = irp.measure_latency(two_products(), (4, 4, 1), runtime="jax", rounds=1)
    assert table.multiple == 1 and table.fingerprint == model.graph.fingerprint
    assert table.attached(model.graph).latency({}) > 0
    for wrong in ({"runtime": "tflite"}, {"rounds": 0}, {"threads": 0}, {"multiple": 0},
                  {"runtime": "jax", "threads": 2}, {"runtime": "jax", "multiple": 8}):  # fmt: skip
        with pytest.raises(UserError):
            irp.measure_latency(two_products(), (4, 4, 1), **wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"overhead": float("nan")},
        {"overhead": float("inf")},
        {"multiple": float("inf")},
        {"runtime": 5},
        {"runtime": "numpy"},
        {"threads": "two"},
        {"checks": [1]},
        {"layers": "ab"},
    ],
)
def test_values_of_other_types_are_refused(change):
    found = table_of(traced.trace(two_products(), (4, 4, 1)).graph).to_json()
    with pytest.raises(ValueError):
        from_json(found | change)


def test_a_table_of_other_layers_is_refused():
    graph = traced.trace(two_products(), (4, 4, 1)).graph
    sound = table_of(graph)
    first, *rest = sound.layers
    for layers_ in (
        tuple(rest),
        (*sound.layers, dataclasses.replace(first, layers=("other",))),
        (dataclasses.replace(first, channels_out=(*first.channels_out[:-1], 99)), *rest),
    ):
        with pytest.raises(ValueError):
            dataclasses.replace(sound, layers=layers_).attached(graph)
    with pytest.raises(ValueError):
        dataclasses.replace(sound, overhead=-1e9).attached(graph)
    negative = first.nanoseconds - 1e6
    damaged = dataclasses.replace(
        sound, layers=(dataclasses.replace(first, nanoseconds=negative), *rest)
    )
    with pytest.raises(ValueError):
        from_json(damaged.to_json())


def test_layers_too_small_for_the_clock(monkeypatch):
    """A layer may take no longer than nothing, by the clock."""
    monkeypatch.setattr(
        measure, "in_turns", lambda runs, rounds, progress: dict.fromkeys(runs, (1e-6,))
    )
    model = traced.trace(two_products(), (4, 4, 1))
    table = irp.measure_latency(two_products(), (4, 4, 1), runtime="jax", rounds=1)
    assert float(table.attached(model.graph).latency({})) == pytest.approx(1000)


def two_products():
    """Returns a network of two matrix products."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("a", (16, 3)), ("b", (3, 4)))
    }

    def net(variables, images):
        hidden = jax.nn.relu(images.reshape(len(images), -1) @ variables["a"])
        return hidden @ variables["b"]

    return net, arrays
