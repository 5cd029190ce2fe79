"""Every flag is checked before anything is loaded; errors name the value and the way out."""

import dataclasses
import functools
from pathlib import Path

import pytest

from irp_jax import config as configs
from irp_jax import models
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training import phases
from irp_jax.training.defenses import DEFENSES
from irp_jax.training.methods import METHODS
from irp_jax.training.optimizer import SCHEDULES

FOLDER = Path(__file__).parent.parent / "configs"


def test_the_default_is_valid():
    configs.check(Config())


def test_settings_that_change_nothing_are_told_with_what_they_are_for():
    given = Config(method="admm", admm_rho=0.01, attack_steps=3, ramp_stop=0.3)
    told = configs.unused(given)
    assert [line.split()[0] for line in told] == ["--attack-steps", "--ramp-stop"]
    assert told[0].endswith("it is for --defense=pgd or trades")
    assert not configs.unused(
        dataclasses.replace(given, method="priced", admm_rho=0.001, defense="pgd")
    )


@pytest.mark.parametrize("dataset", ["cifar10", "digits", "mnist"])
def test_usual_settings_are_never_told(dataset):
    for method in configs.METHODS:
        assert not configs.unused(dataclasses.replace(configs.suited(dataset), method=method))


@functools.cache
def described(model, shape):
    return models.describe(models.build(model, 10, 1.0), shape)


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
def test_configs_in_the_folder_can_be_trained(name):
    for config in configs.load_all(name):
        configs.check(config)
        digits = config.dataset == "digits"
        dense = described(config.model, (8, 8, 1) if digits else (32, 32, 3))
        phases.plan(config, dense, 1000 if digits else 45_000)


@pytest.mark.parametrize(
    ("text", "amount", "absolute"),
    [("0.16", 0.16, False), ("1", 1.0, False), ("0.04M", 4e4, True), ("900k", 9e5, True),
     ("1.5G", 1.5e9, True)],
)  # fmt: skip
def test_budgets_are_fractions_or_amounts(text, amount, absolute):
    assert configs.parse_budget(text) == (pytest.approx(amount), absolute)


@pytest.mark.parametrize(
    "text", ["0", "16", "-1", "nan", "inf", "", "0.16x", "0M", "-1k", "nanM", "1e300G"]
)
def test_budgets_that_cannot_be_meant_are_refused_by_name(text):
    with pytest.raises(UserError, match="budget") as error:
        configs.parse_budget(text)
    assert "\n" not in str(error.value)


def test_a_percentage_is_recognised():
    with pytest.raises(UserError, match=r"did you mean 0\.16"):
        configs.parse_budget("16")


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 1e-3)])
def test_fractions_are_read(text, value):
    assert configs.fraction(text) == value


@pytest.mark.parametrize("text", ["8/0", "a", "1/2/3", ""])
def test_bad_fractions_are_refused(text):
    with pytest.raises(UserError, match="8/255"):
        configs.fraction(text)


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("model", "resnet21", "resnet20"),
        ("dataset", "cifar11", "cifar10"),
        ("method", "prised", "priced"),
        ("regularity", "chanel", "channel"),
        ("cost", "mac", "macs"),
        ("defense", "rsfgsm", "fgsm-rs"),
        ("epsilon", 8.0, "8/255"),
        ("epsilon", 0.0, "8/255"),
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("train_images", -1, "at least 0"),
        ("learning_rate", float("nan"), "positive"),
        ("width", 0.0, "positive"),
        ("validation", 1.0, r"\[0, 1\)"),
        ("epsilon_warmup", 1.0, r"\[0, 1\)"),
        ("evaluate_on", "tests", "validation"),
        ("ramp_stop", 0.01, "below --ramp-stop"),
        ("epochs", 22.5, "--epochs must be a whole number, got 22.5"),
        ("epochs", "3", "whole number, got '3'"),
        ("seed", True, "whole number, got True"),
        ("epsilon", "8/255", "a number"),
        ("guard", 1, "True or False"),
        ("model", None, "text"),
        ("channels", "stage1=12", "not priced: give --method=width"),
        ("channels", "stage1=0", "'stage1=0'"),
        ("channels", "stage1=" + "1" * 5000, "at least 1"),
        ("channels", "stage1=12,stage1=13", "each group once"),
        ("channels", "stage1", "got 'stage1'"),
    ],
)
def test_bad_values_are_refused_with_a_hint(field, value, hint):
    with pytest.raises(UserError, match=hint):
        configs.check(dataclasses.replace(Config(), **{field: value}))


def test_only_the_method_that_has_a_ramp_is_held_to_it():
    configs.check(Config(method="width", ramp_start=0.3))
    with pytest.raises(UserError, match=r"--ramp-start must be in \[0, 1\), got nan"):
        configs.check(Config(method="width", ramp_start=float("nan")))  # equal to no other run's


def test_runs_that_differ_have_workdirs_that_differ():
    base = configs.suited("digits")
    others = [dataclasses.replace(base, seed=1), dataclasses.replace(base, epochs=7)]
    assert len({configs.workdir(c) for c in [base, *others]}) == 3
    moved = dataclasses.replace(base, data_dir="/elsewhere", checkpoint_every=1.0)
    assert configs.workdir(moved) == configs.workdir(base)


def test_what_suits_one_data_set_gives_way_to_what_suits_another():
    mine = Config(model="resnet8", batch_size=64)
    digits = configs.suited("digits", mine)
    assert (digits.epsilon, digits.defense) == (0.1, "fgsm-rs")
    assert configs.suited("cifar10", digits) == mine
    assert configs.suited("mnist", digits) == configs.suited("mnist", mine)
    chosen = dataclasses.replace(digits, epsilon=0.2)
    assert configs.suited("cifar10", chosen).epsilon == 0.2


def test_a_config_survives_json():
    config = configs.suited("digits", Config(budget="0.04M", cost="params"))
    assert configs.from_json(dataclasses.asdict(config)) == config
    with pytest.raises(UserError, match="unknown fields"):
        configs.from_json({"colour": "red"})


def test_loading_a_config_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"PATH\.py"):
        configs.load("no-such-config")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match="config = Config"):
        configs.load(str(empty))
    empty.write_text("raise SystemExit\n")
    with pytest.raises(UserError, match="cannot be run"):
        configs.load(str(empty))


def test_the_names_are_those_of_what_there_is():
    assert set(configs.METHODS) == set(METHODS)
    stages = {name: len(method.stages(Config(epochs=9))) for name, method in METHODS.items()}
    assert stages == {name: configs.BASELINES.get(name, 1) for name in METHODS}
    assert set(configs.DEFENSES) == set(DEFENSES)
    assert set(configs.SCHEDULES) == set(SCHEDULES)


def test_flags_say_what_differs():
    config = dataclasses.replace(Config(), dataset="digits", guard=False, epsilon=0.5)
    assert configs.flags(config, Config()) == ["--dataset=digits", "--epsilon=0.5", "--no-guard"]
    assert "--guard" in configs.flags(Config())


@pytest.mark.parametrize("written", ["8/255", "16/255", "0.1", "0.2", "1/255"])
def test_a_radius_reads_as_it_is_written(written):
    assert configs.radius(configs.fraction(written)) == written
