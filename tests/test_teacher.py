"""Teachers: their targets, the views that they see, and whole runs with a teacher."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_nets import Stopping
from defense_nets import GRAPH, KEY, LABELS, NETWORK, PIXELS, initial, make_setup, recipe
from pruning_nets import quick_jit
from silent import Silent

import irp_jax
from irp_jax import config as configs
from irp_jax import models, parallel, traced
from irp_jax.config import Config
from irp_jax.data import Augmentation
from irp_jax.data.augmentation import augment, augment_each, to_float, view_keys
from irp_jax.errors import UserError
from irp_jax.inference.function import inference
from irp_jax.training import experiment, loop, teacher
from irp_jax.training import optimizer as optimizers
from irp_jax.training.losses import mean_cross_entropy, soft_targets
from irp_jax.training.state import initial_state
from irp_jax.training.step import train_step
from irp_jax.training.teacher import Teacher

POLICY = Augmentation(crop_padding=1, flip=True)


@pytest.fixture(scope="module")
def variables():
    return initial()


# ---- targets -----------------------------------------------------------------------------------


def test_targets_by_hand():
    taught = jnp.array([[0.5, 0.3, 0.2]])
    found = soft_targets(jnp.array([1]), 3, 0.3, taught, 0.25)
    np.testing.assert_allclose(found, [[0.2, 0.675, 0.125]], rtol=1e-6)
    np.testing.assert_allclose(soft_targets(jnp.array([1]), 3), [[0, 1, 0]])
    np.testing.assert_allclose(soft_targets(jnp.array([1]), 3, 0.3, taught, 1.0), taught)


def test_cross_entropy_takes_labels_and_probabilities():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    shares = jax.nn.softmax(logits)
    labels = jnp.array([3, 0, 1])
    by_hand = -np.log(np.asarray(shares)[np.arange(3), labels]).mean()
    assert float(mean_cross_entropy(logits, labels)) == pytest.approx(by_hand, rel=1e-5)
    assert float(mean_cross_entropy(logits, jax.nn.one_hot(labels, 4))) == pytest.approx(
        by_hand, 1e-5
    )
    entropy = -(np.asarray(shares) * np.log(shares)).sum(-1).mean()
    assert float(mean_cross_entropy(logits, shares)) == pytest.approx(entropy, rel=1e-5)


# ---- views -------------------------------------------------------------------------------------


def test_a_view_of_an_image_depends_on_nothing_but_its_number_and_the_view():
    rows = np.arange(24, dtype=np.int32)
    whole = augment_each(view_keys(KEY, 3, rows), jnp.asarray(PIXELS), POLICY)
    some = np.array([7, 2, 19], np.int32)
    few = augment_each(view_keys(KEY, 3, some), jnp.asarray(PIXELS[some]), POLICY)
    np.testing.assert_array_equal(whole[some], few)
    other = augment_each(view_keys(KEY, 4, rows), jnp.asarray(PIXELS), POLICY)
    assert (whole != other).any(axis=(1, 2, 3)).mean() > 0.8
    for key, image, seen in zip(view_keys(KEY, 3, rows), PIXELS, whole, strict=True):
        np.testing.assert_array_equal(augment(key, image[None], POLICY)[0], seen)


@pytest.mark.parametrize("views", [0, 2])
def test_answers_are_of_the_view_that_is_shown_and_none_is_computed_twice(views, variables):
    mesh = parallel.mesh(2)
    apply = inference(NETWORK)
    images = parallel.place(jnp.asarray(PIXELS), parallel.replicated(mesh))
    key = parallel.place(KEY, parallel.replicated(mesh))
    teacher = Teacher(
        apply, variables, augmentation=POLICY, key=key, images=images, mesh=mesh, views=views,
        first=3, epochs=7,
    )  # fmt: skip
    outputs = [teacher.outputs(epoch) for epoch in (3, 4, 5, 6)]
    assert [output.view for output in outputs] == [3, 4, *((3, 4) if views else (5, 6))]
    paid = [output.passes > 0 for output in outputs]
    assert paid == ([True, True, False, False] if views else [True] * 4)
    same = [
        output.probabilities is outputs[n % 2].probabilities for n, output in enumerate(outputs)
    ]
    assert same == ([True] * 4 if views else [True, True, False, False])
    assert not teacher.stored, "nothing is kept that no epoch will want"
    for output in outputs:
        rows = np.arange(24, dtype=np.int32)
        seen = to_float(augment_each(view_keys(KEY, output.view, rows), PIXELS, POLICY))
        np.testing.assert_allclose(
            output.probabilities, jax.nn.softmax(apply(variables, seen)), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("who", ["probabilities", "average"])
def test_a_step_descends_towards_the_answers(who, variables):
    """With the teacher's outputs as the only target, one step matches the gradient by hand."""
    setup = make_setup(Config(budget="1.0", epochs=1, batch_size=24, ema=0.9, method="width"))
    optimizer = optimizers.build(setup.config, setup.plan, GRAPH, frozen=False)
    state = initial_state(setup.config, setup.plan, GRAPH, variables)
    moved = jax.tree.map(lambda leaf: leaf * 1.5 + 0.1, state.average["weights"])
    state = dataclasses.replace(state, average={**state.average, "weights": moved})
    how = dataclasses.replace(
        recipe("none"), augmentation=Augmentation(), teacher_weight=1.0,
        taught_by_average=who == "average",
    )  # fmt: skip
    pixels = jnp.asarray(PIXELS)
    averaged = {"params": moved, "batch_stats": state.average["batch_stats"]}
    probabilities = jax.nn.softmax(inference(NETWORK)(averaged, to_float(pixels)))
    taught = probabilities if who == "probabilities" else None
    step = quick_jit(functools.partial(train_step, how, NETWORK, optimizer))
    after, metrics = step(KEY, state, pixels, LABELS, np.arange(24), 0, taught)

    @quick_jit
    @jax.value_and_grad
    def loss(weights):
        logits, _ = NETWORK(weights, state.batch_stats, to_float(pixels), train=True)
        return mean_cross_entropy(logits, probabilities)

    value, gradient = loss(state.params["weights"])
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    rate, decay = setup.config.learning_rate, setup.config.weight_decay
    for name, before in state.params["weights"].items():
        expected = before - rate * (gradient[name] + decay * before)
        np.testing.assert_allclose(after.params["weights"][name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "softplus", "gelu"])
def test_networks_with_smooth_activations_are_cut_to_the_same_function(activation):
    plain, smooth = (
        traced.trace(models.ResNet((1, 1), (4, 6), 3, name), (8, 8, 1))
        for name in ("relu", activation)
    )
    assert smooth.fingerprint != plain.fingerprint
    assert traced.check(smooth) < 1e-3
    assert traced.is_drawn(smooth)
    fixed = traced.trace((lambda variables, images: images.mean((1, 2)) @ variables["w"],
                          {"w": np.ones((1, 3), np.float32)}), (8, 8, 1))  # fmt: skip
    assert not traced.is_drawn(fixed)


# ---- whole runs --------------------------------------------------------------------------------


def configured(folder, **changes):
    base = configs.suited("digits", Config(model="resnet8", budget="0.3"))
    quick = {"epochs": 6, "batch_size": 256, "checkpoint_every": 0.0, "defense": "none"}
    return dataclasses.replace(base, workdir=str(folder), **(quick | changes))


@pytest.mark.parametrize("method", ["magnitude", "admm"])
@pytest.mark.slow
def test_the_parent_of_a_baseline_is_dense(method, quick_runs, tmp_path, monkeypatch):
    taken, make = [], loop.with_parent

    def spied(*arguments):
        taken.append(make(*arguments))
        return taken[-1]

    monkeypatch.setattr(loop, "with_parent", spied)
    config = configured(tmp_path / "run", method=method, teacher="parent", epochs=3)
    results = experiment.run(config, Silent(), "bin/train")
    assert results["cost"]["macs_ratio"] <= 0.3
    (whole,) = taken
    assert not whole.keep_counts and whole.epoch == 1
    params = sum(leaf.size for leaf in whole.parent["params"].values())
    assert params == results["cost"]["dense_params"]


def test_answers_of_a_saved_network_change_what_is_learned(quick_runs, tmp_path):
    experiment.run(configured(tmp_path / "a", epochs=1), Silent(), "bin/train")
    teacher = str(tmp_path / "a" / "network")
    taught, alone = (
        experiment.run(
            configured(tmp_path / name, epochs=1, method="width", teacher=who), Silent(), "x"
        )
        for name, who in (("b", teacher), ("c", ""))
    )
    assert taught["network_sha256"] != alone["network_sha256"]
    assert taught["history"][0]["loss"] != alone["history"][0]["loss"]


def test_a_teacher_for_other_images_is_refused(quick_runs, tmp_path):
    experiment.run(configured(tmp_path / "a", epochs=1), Silent(), "bin/train")
    images, labels = np.zeros((64, 9, 9, 1), np.uint8), np.arange(64) % 10
    other = irp_jax.from_arrays(images, labels, images, labels)
    config = configured(tmp_path / "b", teacher=str(tmp_path / "a" / "network"), batch_size=32)
    with pytest.raises(UserError, match=r"--teacher=.* is for images \(8, 8, 1\) in 10 classes"):
        experiment.run(config, Silent(), "x", dataset=other)


def test_a_teacher_of_the_same_classes_in_another_order_is_refused():
    zoo = Path(__file__).parent.parent / "results" / "zoo" / "resnet20-digits-0.16"
    digits = irp_jax.load_data("digits")
    notes = []
    assert teacher.load(Config(teacher=str(zoo)), digits, notes.append) is not None
    other = dataclasses.replace(digits, class_names=digits.class_names[::-1])
    with pytest.raises(UserError, match="another order"):
        teacher.load(Config(teacher=str(zoo)), other, notes.append)
    assert notes == []


def test_the_parent_is_the_dense_network_and_a_killed_run_ends_alike(quick_runs, tmp_path):
    taught = {
        "teacher": "parent", "teacher_views": 2, "prune_start": 0.3, "prune_stop": 0.6, "ema": 0.9,
    }  # fmt: skip
    config = configured(tmp_path / "whole", **taught)
    reporter = Silent()
    results = experiment.run(config, reporter, "bin/train")
    assert any("dense network of 2 epochs is the teacher" in note for note in reporter.notes)
    assert [row["frozen"] for row in results["history"]] == [e > 4 for e in range(1, 7)]
    assert results["cost"]["macs_ratio"] <= 0.3
    assert results["passes_per_image"] == pytest.approx(6 + 2 / 3, abs=1e-3)  # two views
    dense = configured(tmp_path / "dense", epochs=2, method="width", budget="1.0", ema=0.9)
    alone = experiment.run(dense, Silent(), "bin/train")
    # The first stage is a whole run of the dense network, with a complete learning rate schedule.
    ours = [row["loss"] for row in results["history"][:2]]
    assert ours == pytest.approx([row["loss"] for row in alone["history"]], rel=1e-4)

    killed = configured(tmp_path / "killed", **taught)
    for stop in (3, 6):  # where the parent is stored, and after compaction
        with pytest.raises(KeyboardInterrupt):
            experiment.run(killed, Stopping(stop=stop), "bin/train")
    again = experiment.run(killed, Stopping(), "bin/train")
    assert [r["loss"] for r in again["history"]] == [r["loss"] for r in results["history"]]
    assert again["network_sha256"] == results["network_sha256"]
    assert again["passes_per_image"] == results["passes_per_image"]


def test_a_saved_teacher_is_used_from_the_start_and_is_part_of_the_identity(quick_runs, tmp_path):
    first = experiment.run(configured(tmp_path / "a", epochs=1), Silent(), "bin/train")
    config = configured(
        tmp_path / "b", epochs=2, method="width", teacher=str(tmp_path / "a" / "network")
    )
    results = experiment.run(config, Silent(), "bin/train")
    assert results["identity"]["teacher_sha256"] == first["network_sha256"]
    assert results["passes_per_image"] == pytest.approx(2 + 2 / 3, abs=1e-3)
    with pytest.raises(UserError, match="no checkpoint in"):
        experiment.run(
            configured(tmp_path / "c", teacher=str(tmp_path / "none")), Silent(), "bin/train"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "parent", "method": "width"}, "--method=width trains none"),
        ({"teacher": "parent", "method": "hinge"}, "--method=hinge trains none"),
        ({"teacher": "parent", "epochs": 1}, "--epochs must be at least 2"),
        ({"teacher": "average"}, "give --ema"),
        (
            {"teacher": "average", "ema": 0.9, "method": "hinge"},
            "--method=hinge prunes only at the end",
        ),
        ({"spread": 2.0, "granularity": "weight"}, "--spread is for --granularity=channel"),
        ({"reinit": True, "granularity": "weight"}, "--reinit is for --granularity=channel"),
        ({"teacher_weight": 0.0}, r"--teacher-weight must be in \(0, 1\]"),
        ({"teacher_weight": 1.5}, r"--teacher-weight must be in \(0, 1\], got 1.5"),
        ({"teacher_views": -1}, "--teacher-views must be at least 0"),
        ({"natural_weight": 1.0}, r"--natural-weight must be in \[0, 1\)"),
        ({"noise": 0.0}, "--noise must be in"),
        ({"robustness_weight": float("nan")}, "--robustness-weight must be in"),
        ({"spread": 0.5}, "--spread must be 0"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        configs.check(Config(**change))
