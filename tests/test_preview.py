"""What a run would do is shown without doing it, and all names are listed."""

import json
import math
import re

import pytest

from irp_jax import config as configs
from irp_jax import network
from irp_jax.cli import train as command
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training.preview import preview


def test_a_dry_run_shows_everything_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command.train(["--model=resnet8", "--dataset=mnist", "--budget=0.5", "--dry-run"])
    shown = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    settings, end = json.JSONDecoder().raw_decode(shown)
    found = preview(configs.suited("mnist", Config(model="resnet8", budget="0.5")))
    assert settings == found.settings and settings["defense"] == "fgsm-rs"
    for row in found.layers:
        name, channels = row["layer"], f"{row['channels_out']}/{row['dense_channels_out']}"
        assert re.search(rf"{name} .* {channels} .* {row['macs']:,} ", shown[end:])
    assert 0.4 < found.cost["macs_ratio"] <= 0.5
    assert sum(row["macs"] for row in found.layers) == found.cost["macs"]
    with pytest.raises(UserError, match=r"--budget|budget"):
        command.train(["--model=resnet8", "--dataset=mnist", "--budget=2", "--dry-run"])


@pytest.mark.slow
def test_the_memory_is_of_the_images_the_state_and_the_activations():
    one = preview(Config(model="resnet8", train_images=1000, batch_size=64))
    two = preview(Config(model="resnet8", method="width", train_images=1000, batch_size=128))
    images, state, activations = one.memory.values()
    assert images == 1000 * math.prod((32, 32, 3))
    params = one.cost["dense_params"]
    assert 3 * 4 * params < state < 4 * 4 * params  # weights, momentum, gradients; statistics
    assert list(two.memory.values())[2] == pytest.approx(2 * activations, rel=0.05)
    assert (one.is_chosen, two.is_chosen) == (False, True)


def test_all_names_are_listed(capsys):
    command.train(["--list"])
    shown = capsys.readouterr().out
    words = ("resnet20", "digits", "admm", "trades", "autoattack", *configs.available())
    assert all(re.search(rf"\b{word}\b", shown) for word in words)


def test_a_notebook_shows_tables_of_a_network():
    cost = {
        "macs": 1200, "dense_macs": 4800, "macs_ratio": 0.25, "params": 20, "dense_params": 100,
        "params_ratio": 0.2,
    }  # fmt: skip
    record = {
        "model": {"file": "<b>.py:Net"}, "class_names": ["a", "b"], "image_shape": [8, 8, 1],
        "cost": cost, "keep_counts": {"stem": 3}, "groups": {"stem": 16},
    }  # fmt: skip
    net = network.Network(apply=lambda v, x: x, variables={}, record=record)
    shown = net._repr_html_()
    assert "<b>.py" not in shown and "&lt;b&gt;.py:Net: 2 classes" in shown
    assert "<td>1,200</td><td>4,800</td><td>25.0%</td>" in shown
    assert "<td>stem</td><td>3</td><td>16</td>" in shown and "accuracy" not in shown
    results = {"accuracy": {"natural": 0.5, "pgd": 0.25}}
    known = network.Network(apply=net.apply, variables={}, record=record, results=results)
    assert "<td>pgd</td><td>25.00</td>" in known._repr_html_()
