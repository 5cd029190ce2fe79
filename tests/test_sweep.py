"""Many runs, attacked, collected and handed on, by the commands that users type."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from irp_jax.cli import evaluate, publish, report, train
from irp_jax.cli import sweep as sweep_command
from irp_jax.errors import UserError

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = """
from irp_jax.config import Config

configs = [
    Config(model="resnet8", dataset="{data}", budget="0.3", epochs=1, batch_size=64, epsilon=0.1,
           method=method, guard=False)
    for method in ("priced", "width")
]
"""


def sweep(folder, *flags):
    command = [sys.executable, "-P", "-m", "irp_jax.cli.sweep"]  # as bin/sweep starts it
    command += ["--config=mine.py", "--results=results", "--attacks=pgd-3-2,fgsm", "--jobs=1"]
    done = subprocess.run(
        [*command, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    digits = load_digits()
    images, labels = (16 * digits.images).clip(0, 255).astype(np.uint8)[..., None], digits.target
    arrays = {
        "train_images": images[:160], "train_labels": labels[:160],
        "test_images": images[160:200], "test_labels": labels[160:200],
    }  # fmt: skip
    np.savez(folder / "data.npz", **arrays)
    (folder / "mine.py").write_text(CONFIG.format(data=folder / "data.npz"))
    (folder / "random.py").write_text("raise SystemExit('the user has files of their own')")
    return folder, sweep(folder)


def test_a_sweep_trains_attacks_and_collects(swept):
    folder, said = swept
    assert said.count(" done, ") == 2
    found = [json.loads(path.read_text()) for path in sorted((folder / "results").iterdir())]
    assert {one["method"] for one in found} == {"priced", "width"}
    for one in found:
        accuracy = one["accuracy"]
        assert accuracy["natural"] >= accuracy["fgsm"] >= 0
        assert accuracy["natural"] >= accuracy["pgd-3-2"]
        assert (
            one["attacks"]["pgd-3-2"]["attack"] | {"steps": 3, "restarts": 2, "images": 40}
            == (one["attacks"]["pgd-3-2"]["attack"])
        )


def test_what_is_collected_is_not_run_again_and_what_is_missing_is(swept):
    folder, _ = swept
    shutil.move(folder / "runs", folder / "elsewhere")
    kept, dropped = sorted((folder / "results").iterdir())
    before, removed = kept.read_bytes(), json.loads(dropped.read_text())
    dropped.unlink()
    said = sweep(folder)
    assert (said.count(" was done, "), said.count(" done, ")) == (1, 2)
    assert kept.read_bytes() == before
    again = json.loads(dropped.read_text())
    assert again["accuracy"] == removed["accuracy"]
    shutil.rmtree(folder / "runs")
    shutil.move(folder / "elsewhere", folder / "runs")


def test_attacks_on_test_images_are_not_for_runs_that_choose_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from irp_jax.config import Config\n"
        "config = Config(dataset='digits', evaluate_on='validation')\n"
    )
    with pytest.raises(UserError, match="evaluated on validation"):
        sweep_command.sweep(["--config=mine.py", "--attacks=fgsm"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_network_is_handed_on_with_a_card_that_says_what_it_does(swept, monkeypatch, capsys):
    folder, _ = swept
    monkeypatch.chdir(folder)
    results = sorted((folder / "results").iterdir())[0]
    run = folder / "runs" / results.stem
    publish.publish([f"--run={run}", f"--results={results}", "--into=zoo/small"])
    card = (folder / "zoo" / "small" / "README.md").read_text()
    found = json.loads(results.read_text())
    assert f"{100 * found['accuracy']['pgd-3-2']:.2f} | 40 | `bin/evaluate" in card
    assert "--checkpoint=zoo/small --dataset=data.npz --attack=pgd --steps=3" in card
    assert f"{found['cost']['params']:,} parameters" in card
    published = b"".join(p.read_bytes() for p in Path("zoo").rglob("*") if p.is_file())
    assert str(folder).encode() not in published, "no place on this machine"
    (command,) = [line.split("`")[1] for line in card.splitlines() if "pgd-3-2" in line]
    evaluate.evaluate([*shlex.split(command)[1:], "--out=again.json"])
    assert (
        json.loads(Path("again.json").read_text())["accuracy"]["pgd"]
        == (found["accuracy"]["pgd-3-2"])
    )
    before = sorted(Path("zoo").rglob("*"))
    with pytest.raises(UserError, match="another run"):
        train.train([*shlex.split(found["command"])[1:], "--workdir=zoo/small"])
    assert set(before) <= set(Path("zoo").rglob("*")), "what is handed on is not a run to resume"
    with pytest.raises(UserError, match="exists"):
        publish.publish([f"--run={run}", "--into=zoo/small"])
    other = sorted((folder / "results").iterdir())[1]
    with pytest.raises(UserError, match="not of the finished run"):
        publish.publish([f"--run={run}", f"--results={other}", "--into=zoo/other"])
    capsys.readouterr()
    report.report(["results", "--markdown"])
    assert "priced" in capsys.readouterr().out
