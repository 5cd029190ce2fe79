"""A shell completes commands, flags and their values."""

import importlib
import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from irp_jax.cli.completion import completion, flags, script
from irp_jax.errors import UserError

TYPED = [
    ("irp-jax train --mod\t", "<train><--model=>"),
    ("irp-jax ev\t--check\truns", "<evaluate><--checkpoint=runs>"),
    ("irp-jax train --model=vg\t", "<train><--model=vgg16>"),
    ("irp-jax train --model vg\t", "<train><--model><vgg16>"),
    ("bin/train --config=guard_\t--dry\t", "<--config=guard_cifar10><--dry-run>"),
    ("./bin/export ver\t--art\tx --see\t1", "<verify><--artifact=x><--seed=1>"),
    ("irp-jax export --layout=NH\t", "<export><--layout=NHWC>"),
    ("irp-jax train --workdir=some\t", "<train><--workdir=somewhere>"),
    ("bin/report some\t", "<somewhere>"),
    ("bin/train --no-gu\t", "<--no-guard>"),
]
"""What is typed, and the arguments that the command then gets."""


def test_a_script_is_printed(capsys):
    completion(["bash"])
    assert capsys.readouterr().out == script("bash")
    for arguments in ([], ["fish"], ["bash", "zsh"]):
        with pytest.raises(UserError):
            completion(arguments)


@pytest.mark.parametrize("name", [*flags()])
def test_every_flag_that_help_names_is_completed(name, capsys):
    command, *second = name.split()
    if name in ("completion", "bench"):
        return  # has no flags
    module = importlib.import_module(f"irp_jax.cli.{command}")
    with pytest.raises(SystemExit):
        getattr(module, command)([*second, "--help"])
    said = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
    at_start = set(re.findall(r"^\s*(?:-h, )?(--[a-z][a-z-]*)", said, re.M))
    assert "--help" in at_start and at_start <= set(flags()[name])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_keys_typed_in_a_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    path = tmp_path / "script"
    path.write_text(script(shell))
    assert subprocess.run([shell, "-n", path]).returncode == 0
    (tmp_path / "somewhere").touch()
    show = "() { printf '<%s>' \"$@\"; echo; }"
    start = [f"source {path}", *(f"{name}{show}" for name in ("irp-jax", "bin/train", "bin/report",
                                                              "./bin/export"))]  # fmt: skip
    plain = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[shell]
    before = ["autoload -U compinit && compinit -D -u"] if shell == "zsh" else []
    terminal, inner = pty.openpty()
    child = subprocess.Popen(
        [shell, *plain, "-i"], stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path,
        env=os.environ | {"TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    try:
        for line in [*before, *start]:
            os.write(terminal, f"{line}\n".encode())
        os.write(terminal, b"echo rea''dy\n")
        read_until(terminal, "ready")
        for keys, expected in TYPED:
            os.write(terminal, f"{keys}\n".encode())
            read_until(terminal, f"{expected}\r")
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def read_until(terminal, expected, seconds=30):
    """Reads what a terminal shows until it shows some text."""
    shown, until = "", time.monotonic() + seconds
    while expected not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
        assert ready, f"{expected} is not in {shown}"
        shown += os.read(terminal, 4096).decode(errors="replace")
