"""The files of a run are written completely or not at all."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from irp_jax import checkpoint, files
from irp_jax.errors import UserError


def test_json_is_written_and_read(tmp_path):
    files.write_json(tmp_path / "new" / "a.json", {"b": [1, 2.5]})
    assert files.read_json(tmp_path / "new" / "a.json") == {"b": [1, 2.5]}
    assert files.read_json(tmp_path / "missing.json") is None
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_damaged_json_and_unwritable_places_are_user_errors(tmp_path):
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"bad\.json"):
        files.read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot write"):
        files.write_json(tmp_path / "bad.json" / "under-a-file.json", {})
    with pytest.raises(UserError, match=r"cannot write '\.'"):
        files.write_json(Path("."), {})


@pytest.mark.parametrize(
    ("number", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, False), (errno.EIO, False)],
)
def test_space_is_asked_for_only_where_it_lacks(tmp_path, monkeypatch, number, full):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "_check_space", fails)
    monkeypatch.setattr("builtins.open", fails)
    for save in (
        lambda: files.write_json(tmp_path / "a.json", {}),
        lambda: files.append_log(tmp_path / "a.jsonl", {}),
        lambda: checkpoint.save(tmp_path, 1, {}, None, {}),
    ):
        with pytest.raises(UserError, match=os.strerror(number)) as caught:
            save()
        assert ("free some space" in str(caught.value)) == full
    assert list(tmp_path.iterdir()) == []


def test_a_folder_belongs_to_one_run(tmp_path):
    with files.lock(tmp_path / "run", {"seed": 0}):
        own = {"identity": {"seed": 0}, "settings": {"seed": 0, "epochs": 3}}
        files.write_json(tmp_path / "run" / "config.json", own)
    with files.lock(tmp_path / "run", {"seed": 0}):
        pass
    with (
        pytest.raises(UserError, match="seed=0, not 1"),
        files.lock(tmp_path / "run", {"seed": 1}),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"\(epochs=default, not 5, seed=0, not the default\)"),
        files.lock(tmp_path / "run", {"epochs": 5}),
    ):
        pass


@pytest.mark.parametrize("found", [[], {"seed": 0, "epochs": 3}, {"identity": None}])
def test_a_folder_of_another_version_or_of_something_else_is_refused(tmp_path, found):
    """Otherwise it would be taken for a run with default settings."""
    files.write_json(tmp_path / "config.json", found)
    with pytest.raises(UserError, match="choose another --workdir"), files.lock(tmp_path, {}):
        pass


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl"])
def test_a_folder_without_a_config_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"has {name} but no config"), files.lock(tmp_path, {}):
        pass
    assert (tmp_path / name).read_text() == "{}"


def test_a_lost_config_does_not_lock_a_run_out_of_its_checkpoints(tmp_path):
    files.append_log(tmp_path / "metrics.jsonl", {"epoch": 1})
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"identity": {')
    with pytest.raises(UserError, match=r"config\.json.*move it away"), files.lock(tmp_path, {}):
        pass
    (tmp_path / "config.json").unlink()
    with files.lock(tmp_path, {}):
        assert files.read_log(tmp_path / "metrics.jsonl") == [{"epoch": 1}]


def test_the_root_is_no_file_to_write():
    with pytest.raises(UserError, match="cannot write '/'"):
        files.check_place(Path("/"))


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path):
    with (
        files.lock(tmp_path, {}),
        pytest.raises(UserError, match="in use"),
        files.lock(tmp_path, {}),
    ):
        pass


def test_the_log_is_cut_back_to_the_epoch_resumed_from(tmp_path):
    log = tmp_path / "metrics.jsonl"
    for epoch in (1, 2, 3):
        files.append_log(log, {"epoch": epoch})
    with log.open("ab") as file:
        file.write(b'3\n[1]\n{"a": 1}\n{"epoch": null}\n\xff\0\0\n')  # of a bad disk
        file.write(b'{"epoch": 4, "lo')  # as after a kill in the middle of a line
    files.truncate_log(log, 2)
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2]
    assert files.read_log(log) == [{"epoch": 1}, {"epoch": 2}]
    assert files.read_log(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("place", "added", "named"),
    [
        ("irp_jax", True, True),
        ("irp_jax", False, False),
        (".venv/lib/site-packages/irp_jax", False, False),
        ("vendored/irp_jax", True, False),
    ],
)
def test_only_the_commit_of_its_own_repository_is_named(tmp_path, monkeypatch, place, added, named):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    code = tmp_path / place / "files.py"
    code.parent.mkdir(parents=True)
    code.write_text("")
    git("init", "-q")
    if added:
        git("add", ".")
    git("commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.setattr(files, "__file__", str(code))
    found = files.commit()
    assert (found is not None) == named
    if named:
        assert len(found) == 40
        code.write_text("changed")
        assert files.commit() == found + "+"
