"""The command line: each error is one line, with exit code 2."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from irp_jax import data, loading
from irp_jax.cli import common, evaluate, flags, publish, report, sweep, train
from irp_jax.config import Config
from irp_jax.errors import UserError

ZOO = Path(__file__).parent.parent / "results" / "zoo"


def refusal(capsys, monkeypatch, command, *arguments):
    """Runs a command that must fail with exit code 2, and returns the line that it printed."""
    monkeypatch.setattr("sys.argv", ["bin/x", *arguments])
    with pytest.raises(SystemExit) as stopped:
        common.main(command)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model=resnet21"], "did you mean 'resnet20'"),
        (["--dataset=digit"], "did you mean 'digits'"),
        (["--budget=0"], "got 0"),
        (["--budget=16"], "did you mean 0.16"),
        (["--budget=-1"], "got -1"),
        (["--budget=nan"], "'nan' is not a number"),
        (["--dataset=digits", "--budget=0.0001"], "the least possible is 0.00"),
        (["--epsilon=8"], "did you mean 8/255"),
        (["--epsilon=8/0"], "8/255"),
        (["--epochs=0"], "at least 1"),
        (["--epochs=many"], "--epochs must be a whole number, got 'many'"),
        (["--workdir=two", "--epochs", "two"], "--epochs must be a whole number, got 'two'"),
        (["--prune-stop=0.5", "--epochs=0.5"], "--epochs must be a whole number, got '0.5'"),
        (["--epsilon", "8/0"], "--epsilon must be a number, for instance 0.03 or 8/255, got '8/0'"),
        (["--method=admm", "--epochs=2"], "at least 3, one for each stage of --method=admm, got 2"),
        (["--dataset=digits", "--batch-size=5000"], "1293 training images"),
        (["--dataset=nowhere.npz"], "no file nowhere.npz"),
        (["--config=nope"], "choices"),
        (["--config"], "--config needs a value"),
        (["--modle=resnet20"], "unknown flag '--modle': did you mean '--model'?"),
        (["resnet20"], "'resnet20' belongs to no flag"),
        (["--seed=4294967296"], "in [0, 4,294,967,295]"),
        (["--epochs"], "--epochs needs a value"),
        (["--epochs", "--seed=1"], "--epochs needs a value"),
        (["--workdir="], "--workdir needs a value"),
        (["--guard=false"], "give --guard or --no-guard"),
        (["--no-guard=1"], "give --guard or --no-guard"),
        (["--cutout=3000000000"], "in [0, 4,096]"),
        (["--dataset=digits", "--epochs=400000000"], "too many to count"),
        (["--width=1e30"], "in (0, 64]"),
    ],
)
def test_bin_train_refuses_in_one_line_and_leaves_nothing(
    capsys, monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, monkeypatch, train.train, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_needs_is_named(capsys, monkeypatch):
    assert "--checkpoint is needed" in refusal(capsys, monkeypatch, evaluate.evaluate)
    said = refusal(capsys, monkeypatch, evaluate.evaluate, "--checkpoint=none", "--out=")
    assert "--out needs a value" in said
    assert "--into is needed" in refusal(capsys, monkeypatch, publish.publish, "--run=x")


def test_out_of_memory_is_one_line(capsys, monkeypatch):
    def greedy(arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    assert "smaller --batch-size" in refusal(capsys, monkeypatch, greedy)


def test_home_is_found_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    parsed = flags.parse(Config, ["--workdir=~/mine", "--budget=0.3"], "bin/train")
    assert (parsed.workdir, parsed.budget) == ("/home/anna/mine", "0.3")


@pytest.mark.parametrize("flag", ["--out=file/figures.json", "--save-adversarial=d.npz"])
def test_what_cannot_be_written_is_refused_before_the_attack(capsys, monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "d.npz").mkdir()
    said = refusal(capsys, monkeypatch, evaluate.evaluate, "--checkpoint=none", flag)
    assert said.startswith("error: cannot write ")


def test_results_that_lack_something_are_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "one.json").write_text('{"config": {}, "accuracy": {}, "model": "resnet20"}')
    said = refusal(capsys, monkeypatch, report.report, str(tmp_path))
    assert "one.json" in said and "another version" in said


def test_bad_arrays_are_refused(capsys, monkeypatch, tmp_path):
    path = tmp_path / "mine.npz"
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(
        path, train_images=images, train_labels=labels - 1, test_images=images, test_labels=labels
    )
    monkeypatch.chdir(tmp_path)
    assert "label" in refusal(capsys, monkeypatch, train.train, f"--dataset={path}")
    path.write_bytes(b"no archive")
    assert "mine.npz" in refusal(capsys, monkeypatch, train.train, f"--dataset={path}")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]


def test_an_unwritable_workdir_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "run"
    said = refusal(capsys, monkeypatch, train.train, "--dataset=digits", f"--workdir={where}")
    assert "--workdir" in said


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (evaluate.evaluate, ["--checkpoint=nowhere"], "no checkpoint in nowhere"),
        (evaluate.evaluate, ["--checkpoint=x", "--images=0"], "at least 1"),
        (report.report, ["nowhere"], "no file or folder nowhere"),
        (sweep.sweep, ["--seeds=a"], "whole numbers"),
        (sweep.sweep, ["--budgets=16"], "did you mean 0.16"),
        (sweep.sweep, ["--attacks=pgd-0"], "steps must be at least 1"),
        (sweep.sweep, ["--attacks=autoatack"], "autoattack"),
        (sweep.sweep, ["--attacks=pgd"], "pgd-50-10"),
        (sweep.sweep, ["--images=0"], "at least 1"),
        (sweep.sweep, ["--images=5"], "--attacks"),
        (train.train, ["--config=comparison"], "bin/sweep"),
        (publish.publish, ["--run=nowhere", "--into=there"], "no checkpoint in nowhere"),
        (
            publish.publish,
            [f"--run={ZOO}/resnet20-digits-0.16", "--results=.", "--into=there"],
            ". is a folder where a JSON file is needed",
        ),
    ],
)
def test_the_other_commands_refuse_alike(capsys, monkeypatch, tmp_path, command, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, monkeypatch, command, *arguments)


def test_numbers_may_be_fractions_and_defaults_show():
    config = flags.parse(Config, ["--epsilon=8/255", "--seed=3"], "bin/train", Config(epochs=5))
    assert (config.epsilon, config.seed, config.epochs) == (8 / 255, 3, 5)


def test_a_file_that_may_not_be_read_is_one_line(capsys, monkeypatch):
    def barred(_):
        raise PermissionError(13, "Permission denied", "/secret/data")

    assert refusal(capsys, monkeypatch, barred) == "error: /secret/data: Permission denied"


def test_a_published_command_names_no_place_on_this_machine():
    typed = ["--workdir=/home/me/x", "--data-dir", "/data", "--model=vgg16"]
    assert common.publishable("bin/train", typed) == "bin/train --model=vgg16"
    otherwise = ["--data_dir=/a", "--out=/b", "--save-adversarial", "/c.npz", "--out", "/d"]
    assert common.publishable("bin/evaluate", otherwise) == "bin/evaluate"
    several = ["--checkpoints=/home/a/one,runs/two", "--images=3"]
    published = common.publishable("bench", several)
    assert published == "bench --checkpoints=runs/one,runs/two --images=3"
    assert (
        common.publishable("bin/train", ["--config=~/secret/mine.py"])
        == "bin/train --config=mine.py"
    )
    at_home = ["--checkpoint=~/me/runs/x"]
    assert common.publishable("bin/evaluate", at_home) == "bin/evaluate --checkpoint=runs/x"


def test_flags_win_over_what_suits_the_data_set_which_wins_over_the_config(monkeypatch):
    seen = {}
    monkeypatch.setattr("irp_jax.training.experiment.run", lambda config, *_: seen.update(c=config))
    train.train(["--config=cifar10", "--dataset=digits", "--epochs=7"])
    assert (seen["c"].dataset, seen["c"].epsilon, seen["c"].epochs) == ("digits", 0.1, 7)
    with pytest.raises(UserError, match="choices"):
        train.train(["--config", "nope"])


@pytest.fixture
def other_digits(tmp_path):
    """Returns a function that writes digits to an .npz with class names in another order."""
    digits = data.load("digits")

    def write(names, images=digits.test.images):
        place = np.argsort(np.array([int(name) for name in names]))
        path = tmp_path / "other.npz"
        np.savez(
            path, class_names=np.array(names),
            train_images=digits.train.images, train_labels=place[digits.train.labels],
            test_images=images, test_labels=place[digits.test.labels],
        )  # fmt: skip
        return str(path)

    return write


def test_classes_in_another_order_are_refused(capsys, monkeypatch, other_digits):
    path = other_digits(list("0123546789"))
    flags = [f"--checkpoint={ZOO}/resnet20-digits-0.16", "--attack=none", f"--dataset={path}"]
    said = refusal(capsys, monkeypatch, evaluate.evaluate, *flags)
    assert f"class 4 of {path} is '5', the network's '4'" in said
    with pytest.raises(UserError, match="class_names"):
        loading.load(ZOO / "resnet20-digits-0.16").evaluate(data.load(path), "none")


def test_data_that_changed_since_the_run_is_told(capsys, monkeypatch, tmp_path, other_digits):
    digits = data.load("digits")
    path = other_digits(list("0123456789"))
    trained = loading.load(ZOO / "resnet20-digits-0.16")
    about = {"dataset": path, "tested": data.split_digest(digits.test)}
    record = {**trained.record, "trained": {**trained.record["trained"], **about}}
    dataclasses.replace(trained, record=record).save(tmp_path / "net")
    flags = [f"--checkpoint={tmp_path}/net", "--attack=none", "--images=20"]
    evaluate.evaluate(flags)
    assert "since the run" not in capsys.readouterr().out
    other_digits(list("0123456789"), images=digits.test.images[::-1])
    evaluate.evaluate(flags)
    assert f"test images or labels of {path} have changed since the run" in capsys.readouterr().out
