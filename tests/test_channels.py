"""The setting `channels`: parsing, reading from results, errors, and training with it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from baseline_nets import Net, begun, described, variables
from scipy import stats
from silent import Silent

from irp_jax import config as configs
from irp_jax import files, models
from irp_jax.cli import sweep
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training import experiment
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.state import freeze


def test_without_channels_the_identity_is_that_of_older_versions():
    assert "channels" not in configs.identity(Config())
    given = Config(method="width", channels="stage1=12")
    assert configs.identity(given)["channels"] == "stage1=12"
    assert configs.run_name(given) != configs.run_name(Config(method="width"))


def test_the_order_of_given_channels_does_not_matter():
    given = ("a=1,b=2", "b=2,a=1", "b = 2, a=1")
    assert len({configs.run_name(Config(method="width", channels=text)) for text in given}) == 1


def test_channels_are_taken_from_results_and_come_back(tmp_path):
    results = tmp_path / "results.json"
    kept = {"stage2": 20, "stage1": 12, "stage1_block0.inner": 7}
    results.write_text(json.dumps({"keep_counts": kept, "config": {"granularity": "channel"}}))
    assert configs.parse_channels(configs.channels_of(str(results))) == kept
    pruned = {"granularity": "channel"}
    for other in (
        {"keep_counts": kept, "config": {"granularity": "weight"}},
        {"keep_counts": {}, "config": pruned}, [1],
        {"keep_counts": [1], "config": pruned}, {"keep_counts": kept, "config": None},
    ):  # fmt: skip
        results.write_text(json.dumps(other))
        with pytest.raises(UserError, match="no channels"):
            configs.channels_of(str(results))
    with pytest.raises(UserError, match="no channels"):
        configs.channels_of(str(tmp_path / "missing.json"))


def test_given_channels_are_kept_and_initialised_as_a_network_of_that_size():
    wide = Net(64, 96, classes=40)
    config = Config(method="width", budget="0.2", batch_size=32, channels="first=6,second=90")
    graph, plan, state = begun(config, wide)
    frozen, kept = freeze(config, plan, graph, state)
    assert kept == {"first": 6, "second": 90}
    narrow = variables(Net(6, 90, classes=40), seed=1)["params"]
    found = frozen.params["weights"]
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in narrow.items()}
    for name in ("second/kernel", "classifier/kernel"):
        ours, theirs = (np.ravel(arrays[name]) for arrays in (found, narrow))
        assert stats.ks_2samp(ours, theirs).pvalue > 0.05


@pytest.mark.slow
def test_a_finished_run_of_given_channels_is_not_shown_for_uniform_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Net(8, 8, classes))
    config = configs.suited("digits", Config(model="resnet8", method="width", epochs=1))
    config = dataclasses.replace(
        config, train_images=128, budget="0.5", channels="first=2,second=7", workdir=str(tmp_path)
    )
    reporter = Silent()
    config = dataclasses.replace(config, admm_rho=0.1)
    assert experiment.run(config, reporter, "bin/train")["keep_counts"] == {"first": 2, "second": 7}
    assert "--admm-rho changes nothing: it is for --method=admm" in reporter.notes
    assert experiment.run(config, Silent(), "bin/train")["keep_counts"] == {"first": 2, "second": 7}
    for other in ("", "first=2,second=6"):
        with pytest.raises(UserError, match="holds a different run"):
            experiment.run(dataclasses.replace(config, channels=other), Silent(), "bin/train")


@pytest.mark.parametrize(
    ("channels", "budget", "hint"),
    [
        ("c=3", "1", "unknown channel group 'c'.*first, second"),
        ("first=17,second=1", "1", "first has 16 channels, got 17: give the model and --width"),
        ("first=6", "1", "every channel group of resnet20: give also second"),
        # MACs: 9 * 64 * (8 + 8 * 9), and 3 * 9 for the logits.
        (
            "first=8,second=9",
            "46106",
            "leave 46,107 macs, more than the budget 46.106k .46,106.: give --budget=46.11k",
        ),
    ],
)
def test_channels_that_are_not_there_or_cost_too_much_are_refused(channels, budget, hint):
    budget = budget if budget == "1" else f"{float(budget) / 1000}k"
    config = Config(method="width", budget=budget, channels=channels, batch_size=32)
    with pytest.raises(UserError, match=hint):
        make_plan(config, METHODS[config.method], described(Net()), 96)
    fits = dataclasses.replace(config, channels="first=8,second=9", budget="46.107k")
    make_plan(fits, METHODS[fits.method], described(Net()), 96)


def test_a_run_from_before_there_were_channels_goes_on_in_its_folder(tmp_path):
    before = configs.settings(Config(seed=3))
    assert "channels" not in before
    identity = configs.normalised(before)
    files.write_json(tmp_path / "config.json", {"identity": identity, "settings": before})
    with files.lock(tmp_path, configs.identity(Config(seed=3))):
        pass
    with (
        pytest.raises(UserError, match="channels=default, not a=2"),
        files.lock(tmp_path, configs.identity(Config(seed=3, channels="a=2"))),
    ):
        pass


def test_channels_are_those_of_the_runs_that_are_narrow_from_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from irp_jax.config import Config\nconfig = Config(method='width', channels='stage1=12')\n"
    )
    options = sweep.Options(config="mine.py", methods="width,lagrangian")
    assert [run.channels for run in sweep.runs_of(options)] == ["stage1=12", ""]
