"""Checkpoints are restored bit for bit. A damaged one is noticed and skipped."""

import os
import resource
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irp_jax import checkpoint, loading
from irp_jax.errors import UserError


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    weights = {
        f"layer{i}": {"kernel": rng.normal(size=(3, 3, 8, 8)).astype(np.float32)} for i in range(4)
    }
    network = {"weights": weights, "masks": {}, "batch_stats": {"n": np.ones(8, np.float32)}}
    training = {"step": jnp.zeros((), jnp.int32), "optimizer": optax.adam(1e-3).init(weights)}
    return network, training


def damage(folder):
    """Flips one byte in the middle of every larger file."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 255
            path.write_bytes(bytes(content))


def test_everything_comes_back(tmp_path, state):
    network, training = state
    checkpoint.save(tmp_path, 3, network, training, {"keep_counts": {"a": 2}})
    saved = checkpoint.restore(tmp_path, lambda *_: training, print)
    assert saved.epoch == 3
    assert saved.record["keep_counts"] == {"a": 2}
    assert checkpoint.digest(saved.network) == checkpoint.digest(network)
    assert checkpoint.digest(saved.training) == checkpoint.digest(training)


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?b", "a\\b", "**", "é #{x,y}%20:'\"$"])
def test_a_folder_may_have_any_name(tmp_path, state, name):
    folder = tmp_path / name / "checkpoints"
    for epoch in (1, 2, 3):
        checkpoint.save(folder, epoch, *state, {})
    saved = checkpoint.restore(folder, lambda *_: state[1], print, discard=True)
    assert saved.epoch == 3
    assert checkpoint.digest(saved.network) == checkpoint.digest(state[0])
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert checkpoint.restore(folder / "2", None, print).epoch == 2


def test_only_the_newest_are_kept_and_one_can_be_named(tmp_path, state):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, epoch, *state, {})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]
    assert checkpoint.restore(tmp_path / "2", None, print).epoch == 2


def test_damage_falls_back_and_is_told(tmp_path, state):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, *state, {})
    damage(tmp_path / "2" / "network")
    lines: list[str] = []
    assert checkpoint.restore(tmp_path, None, lines.append).epoch == 1
    assert len(lines) == 1
    assert "damaged" in lines[0]
    assert "\n" not in lines[0]
    damage(tmp_path / "1" / "network")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.restore(tmp_path, None, lines.append)
    assert [line.endswith("trying an older one") for line in lines] == [True, True, False]


def truncate(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: truncate(folder / "network" / "d"),
        lambda folder: shutil.rmtree(folder / "training" / "d"),
        lambda folder: shutil.rmtree(folder / "network"),
        lambda folder: (folder / "record" / "metadata").write_text("{"),
        lambda folder: (folder / "record" / "metadata").write_text(
            (folder / "record" / "metadata").read_text().replace("0.5", "0.25")
        ),
    ],
    ids=["truncated", "a file lost", "half deleted", "record truncated", "record changed"],
)
def test_whatever_is_damaged_the_one_before_is_taken_and_one_line_is_told(
    tmp_path, state, harm, capfd
):
    checkpoint.quiet()
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, *state, {"clip": 0.5})
    harm(tmp_path / "2")
    lines: list[str] = []
    saved = checkpoint.restore(tmp_path, lambda *_: state[1], lines.append, discard=True)
    assert (saved.epoch, saved.record["clip"], len(lines)) == (1, 0.5, 1)
    assert checkpoint.digest(saved.network) == checkpoint.digest(state[0])
    checkpoint.save(tmp_path, 2, *state, {"clip": 0.5})
    assert checkpoint.restore(tmp_path, None, lines.append).epoch == 2
    assert capfd.readouterr() == ("", "")


def test_a_run_called_by_a_number_is_no_checkpoint(tmp_path, state):
    (tmp_path / "5" / "network").mkdir(parents=True)
    assert checkpoint.restore(tmp_path / "5", None, print) is None
    with pytest.raises(UserError, match=r"no checkpoint in .*5.*: give a run's workdir"):
        loading.load(tmp_path / "5")
    checkpoint.save(tmp_path / "6" / "checkpoints", 1, *state, {})
    assert checkpoint.restore(tmp_path / "6", None, print) is None
    assert checkpoint.restore(tmp_path / "6" / "checkpoints", None, print).epoch == 1
    damage(tmp_path / "6" / "checkpoints" / "1" / "network")
    with pytest.raises(UserError, match=r"checkpoint .*1 is damaged.*give another"):
        checkpoint.restore(tmp_path / "6" / "checkpoints" / "1", None, lambda _: None)


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.restore(tmp_path / "nowhere", None, print) is None
    assert checkpoint.restore(tmp_path, None, print) is None


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path, state):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, *state, {})


def test_a_run_clears_away_what_is_damaged_or_unfinished(tmp_path, state):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, *state, {})
    damage(tmp_path / "2" / "network")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore(tmp_path, None, lambda _: None, discard=True).epoch == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    checkpoint.save(tmp_path, 2, *state, {})
    assert checkpoint.restore(tmp_path, None, print).epoch == 2


def test_a_checkpoint_that_is_refused_is_not_taken_for_damaged(tmp_path, state):
    checkpoint.save(tmp_path, 1, *state, {})

    def refuse(*_):
        raise UserError("another run")

    with pytest.raises(UserError, match="another run"):
        checkpoint.restore(tmp_path, refuse, print, discard=True)
    assert (tmp_path / "1").is_dir()


def test_what_cannot_be_read_at_all_stays(tmp_path, state):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, *state, {})
    training = state[1]
    one_more = {**training, "optimizer": (training["optimizer"], jnp.zeros(3))}

    def lacks_memory(*_):
        raise MemoryError

    for make_training in (lacks_memory, lambda *_: one_more):
        with pytest.raises(UserError, match="other versions"):
            checkpoint.restore(tmp_path, make_training, lambda _: None, discard=True)
    assert checkpoint.restore(tmp_path, lambda *_: training, print, discard=True).epoch == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, state, monkeypatch):
    checkpoint.save(tmp_path, 1, *state, {})
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"1\.0 MiB free.*free some space"):
        checkpoint.save(tmp_path, 2, *state, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only Linux can tell beforehand")
def test_a_limit_is_told_before_anything_is_written(tmp_path, state, capfd):
    """A quota shows no less free space on the disk, either."""
    checkpoint.save(tmp_path, 1, *state, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write a checkpoint .*same command again"):
            checkpoint.save(tmp_path, 2, *state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    assert capfd.readouterr() == ("", "")
