"""Copies of metrics.jsonl hold each epoch once. tests/test_api.py checks those of a whole run."""

import sys

import pytest
from event_files import points, points_of

from irp_jax import UserError
from irp_jax.config import Config, check, identity
from irp_jax.training import logs


def rows(count, loss):
    return [
        {"epoch": epoch, "loss": loss / epoch, "frozen": epoch > 2, "defense": "pgd"}
        for epoch in range(1, count + 1)
    ]


def test_tensorboard_holds_each_epoch_once_after_a_rollback_and_a_restart(tmp_path):
    pytest.importorskip("tensorboardX")
    for kept in ([], rows(2, 1.0)):
        made = logs.make("tensorboard", tmp_path, {})
        with logs.closed(made):
            made[0].begin(kept)
            made[0].add(rows(3, 7.0)[-1])
            made[0].begin(kept)  # the guard went back
            for row in rows(4, 1.0)[len(kept) :]:
                made[0].add(row)
        assert points(tmp_path / "tensorboard") == points_of(rows(4, 1.0))


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_and_nothing_is_written(monkeypatch, tmp_path, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'irp_jax\[{name}\]'"):
        logs.make(name, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_where_figures_go_is_checked_and_does_not_change_the_run():
    both = Config(log_to="tensorboard,wandb")
    check(both)
    assert identity(both) == identity(Config())
    for wrong in ("tensorbord", "wandb,", "wandb tensorboard"):
        with pytest.raises(UserError):
            check(Config(log_to=wrong))
