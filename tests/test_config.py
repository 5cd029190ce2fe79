"""Settings are checked before anything is loaded. Errors name the value and what to do."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from irp_jax import config as configs
from irp_jax import files, traced
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training.defenses import DEFENSES
from irp_jax.training.methods import METHODS
from irp_jax.training.optimizer import SCHEDULES
from irp_jax.training.plan import make_plan

FOLDER = Path(__file__).parent.parent / "configs"


def test_the_default_is_valid():
    configs.check(Config())


def test_settings_without_effect_are_told_with_their_purpose():
    given = Config(method="admm", admm_rho=0.01, attack_steps=3, prune_stop=0.3)
    told = configs.unused(given)
    assert [line.split()[0] for line in told] == ["--attack-steps", "--prune-stop"]
    assert told[0].endswith("it is for --defense=pgd or trades")
    assert not configs.unused(
        dataclasses.replace(given, method="lagrangian", admm_rho=0.001, defense="pgd")
    )


@pytest.mark.parametrize("dataset", ["cifar10", "digits", "mnist"])
def test_usual_settings_are_never_told(dataset):
    for method in configs.METHODS:
        assert not configs.unused(dataclasses.replace(configs.suited(dataset), method=method))


@functools.cache
def described(model, shape):
    return traced.named(model, 1.0, shape, 10).graph


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_configs_in_the_folder_can_be_trained(name, deep):
    """Networks other than the usual ones take long to trace, and are planned by slow tests."""
    for config in configs.load_all(name):
        configs.check(config)
        if deep == (config.model in ("resnet8", "resnet20")):
            continue
        digits = config.dataset == "digits"
        graph = described(config.model, (8, 8, 1) if digits else (32, 32, 3))
        make_plan(config, METHODS[config.method], graph, 1000 if digits else 45_000)


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
def test_invalid_budgets_are_refused_by_name(text):
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
        ("method", "lagrangean", "lagrangian"),
        ("granularity", "chanel", "channel"),
        ("cost", "mac", "macs"),
        ("defense", "rsfgsm", "fgsm-rs"),
        ("epsilon", 8.0, "8/255"),
        ("epsilon", 0.0, "8/255"),
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("seed", -1, r"in \[0, 4,294,967,295\]"),
        ("train_images", -1, "at least 0"),
        ("learning_rate", float("nan"), "positive"),
        ("width", 0.0, r"in \(0, 64\]"),
        ("validation", 1.0, r"\[0, 1\)"),
        ("epsilon_warmup", 1.0, r"\[0, 1\)"),
        ("evaluate_on", "tests", "validation"),
        ("prune_stop", 0.01, "below --prune-stop"),
        ("epochs", 22.5, "--epochs must be a whole number, got 22.5"),
        ("epochs", "3", "whole number, got '3'"),
        ("seed", True, "whole number, got True"),
        ("epsilon", "8/255", "a number"),
        ("guard", 1, "True or False"),
        ("model", None, "text"),
        ("channels", "stage1=12", "not lagrangian: give --method=width"),
        ("channels", "stage1=0", "'stage1=0'"),
        ("channels", "stage1=" + "1" * 5000, "at least 1"),
        ("channels", "stage1=12,stage1=13", "each group once"),
        ("channels", "stage1", "got 'stage1'"),
    ],
)
def test_bad_values_are_refused_with_a_hint(field, value, hint):
    with pytest.raises(UserError, match=hint):
        configs.check(dataclasses.replace(Config(), **{field: value}))


def test_the_sparsity_schedule_is_checked_only_for_methods_that_have_one():
    configs.check(Config(method="width", prune_start=0.3))
    with pytest.raises(UserError, match=r"--prune-start must be in \[0, 1\), got nan"):
        configs.check(Config(method="width", prune_start=float("nan")))  # NaN equals nothing


def test_runs_that_differ_have_workdirs_that_differ():
    base = configs.suited("digits")
    others = [dataclasses.replace(base, seed=1), dataclasses.replace(base, epochs=7)]
    assert len({configs.workdir(c) for c in [base, *others]}) == 3
    moved = dataclasses.replace(base, data_dir="/elsewhere", checkpoint_every=1.0)
    assert configs.workdir(moved) == configs.workdir(base)


def test_defaults_of_one_data_set_are_replaced_by_those_of_another():
    mine = Config(model="resnet8", batch_size=64)
    digits = configs.suited("digits", mine)
    assert (digits.epsilon, digits.defense) == (0.1, "fgsm-rs")
    assert configs.suited("cifar10", digits) == mine
    assert configs.suited("mnist", digits) == configs.suited("mnist", mine)
    chosen = dataclasses.replace(digits, epsilon=0.2)
    assert configs.suited("cifar10", chosen).epsilon == 0.2


def test_settings_and_identity_survive_json():
    config = configs.suited("digits", Config(budget="0.04M", cost="params"))
    settings = configs.settings(config)
    assert files.as_json(settings) == settings
    assert files.as_json(configs.identity(config)) == configs.identity(config)
    assert configs.normalised(files.as_json(settings)) == configs.identity(config)


# ---- which runs are the same -------------------------------------------------------------------


@pytest.mark.parametrize(
    "alike",
    [
        ("0.04M", "40k", "0.040M", " 40.0k", "4e-5G"),
        ("0.16", "0.160", "1.6e-1", 0.16),
        ("1", "1.0", 1, 1.0),
        ("900k", "0.9M"),
    ],
)
def test_a_budget_is_the_same_however_it_is_written(alike):
    found = [configs.identity(Config(budget=text)) for text in alike]
    assert all(one == found[0] for one in found)
    other = Config(budget="0.041M" if str(alike[0]).endswith(("M", "k")) else "0.17")
    assert configs.identity(other) != found[0]


def test_a_share_is_not_the_amount_of_its_digits():
    budgets = ("1", "1k", "1M", "0.001k")
    assert len({configs.run_name(Config(budget=text)) for text in budgets}) == 4
    assert len({str(configs.identity(Config(budget=text))) for text in budgets}) == 4


def test_a_setting_at_its_default_is_not_in_the_identity():
    assert configs.identity(Config()) == {}
    assert configs.identity(Config(epochs=30, seed=0, budget="0.160", workdir="elsewhere")) == {}
    assert configs.identity(Config(epochs=31, seed=2)) == {"epochs": 31, "seed": 2}
    for field in dataclasses.fields(Config):
        if field.type is float and field.name != "checkpoint_every":
            found = configs.identity(Config(**{field.name: 0.123}))
            assert found == {field.name: 0.123}
    # Values for a data set are not defaults: giving them as flags makes the same run.
    digits = configs.identity(configs.suited("digits"))
    assert digits["epochs"] == 60 and "batch_size" not in digits


def test_the_whole_config_of_older_results_is_the_same_run():
    """Older results hold all fields of their version, including paths and a digest of own files."""
    config = Config(dataset="mine.npz", budget="0.04M", method="width", channels="b=2,a=1", seed=3)
    then = dataclasses.asdict(config) | {"channels": "a=1,b=2", "dataset_sha256": "0" * 64}
    for unknown in ("guard", "ema", "clip"):  # as if they were added later
        del then[unknown]
    assert configs.normalised(then) == configs.identity(config) | {"dataset_sha256": "0" * 64}
    assert configs.normalised(dataclasses.asdict(Config())) == {}
    assert configs.normalised({}) == {}


def test_results_of_older_versions_are_of_the_runs_they_were_of():
    """They are compared by their full config. The oldest have fields that no longer exist."""
    known, checked = {field.name for field in dataclasses.fields(Config)}, 0
    for path in (FOLDER.parent / "results").rglob("*.json"):
        found = json.loads(path.read_text())
        config = found.get("config") if isinstance(found, dict) else None
        if config and set(config) <= known:
            assert configs.normalised(config) == configs.identity(Config(**config)), path
            checked += 1
    assert checked > 20


def test_a_file_of_the_user_is_part_of_the_identity_by_its_content(tmp_path):
    net = tmp_path / "net.py"
    config = Config(model=f"{net}:Net")
    assert "model_sha256" not in configs.identity(config)
    found = []
    for text in ("one", "two", "one"):
        net.write_text(text)
        found.append(configs.identity(config)["model_sha256"])
    assert found[0] == found[2] != found[1]
    assert configs.run_name(config).startswith("net_Net-cifar10-0.16-seed0-")


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
