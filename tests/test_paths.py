"""No folder of this machine is left in what is published."""

import shlex

import pytest

from irp_jax.redaction import public, public_command, public_results


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/home/alice/secret/net.py:Net", "net.py:Net"),
        ("~/data/mine.npz", "mine.npz"),
        ("../alice/table.json", "table.json"),
        ("runs/mine", "runs/mine"),
        ("8/255", "8/255"),
        ("cifar10", "cifar10"),
        ("", ""),
    ],
)
def test_only_names_are_left(text, shown):
    assert public(text) == shown


def test_a_command_keeps_its_flags():
    words = ["--epsilon=8/255", "--latency-table=/home/alice/t.json", "--into",
             "/home/alice/my net", "--checkpoints=/a/b,runs/c"]  # fmt: skip
    shown = shlex.split(public_command(words))
    assert shown == ["--epsilon=8/255", "--latency-table=t.json", "--into", "my net",
                     "--checkpoints=b,runs/c"]  # fmt: skip


def test_results_are_searched_to_the_bottom():
    results = {"command": "bin/train --model=/x/net.py:Net", "a": [{"b": "/x/y"}, 1.0, None]}
    assert public_results(results) == {
        "command": "bin/train --model=net.py:Net", "a": [{"b": "y"}, 1.0, None],
    }  # fmt: skip
