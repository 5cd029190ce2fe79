"""Code that all commands share: how they start, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from irp_jax import checkpoint, hosts, machine
from irp_jax.cli import as_typed, stderr, stdout
from irp_jax.cli.flags import take_flag
from irp_jax.errors import UserError
from irp_jax.redaction import public_command
from irp_jax.sweep.parent import end_with_parent

HOSTS = ("--coordinator", "--processes", "--process")
"""Flags of a command that runs in several processes: see `hosts.start`."""
ABOUT_HOSTS = """--coordinator=HOST:PORT --processes=N --process=I makes this process I of N, on one
host or several. Slurm, Kubernetes and TPU pods need none of them (docs/scale.md)."""


def take_hosts(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments of `hosts.start` that are given, and the other words.

    Raises:
        UserError: a value is missing or no whole number.
    """
    found: dict[str, Any] = {}
    for flag in HOSTS:
        value, arguments = take_flag(arguments, flag)
        if value is not None:
            found[flag[2:]] = value
            if flag != "--coordinator":
                if not re.fullmatch(r"-?\d+", value, re.ASCII):
                    raise UserError(f"{flag} must be a whole number, got {value!r}")
                found[flag[2:]] = int(value)
    return found, arguments


def join(found: dict[str, Any]) -> None:
    """Joins the processes of a run: see `hosts.start`, which takes what `take_hosts` found."""
    if found or hosts.is_cluster():
        stderr.shorten(hosts.LOST)
    hosts.start(**found)


def publishable(command: str, arguments: list[str]) -> str:
    """Returns the command line to store with a result, without paths of this machine.

    Flags that only name places are left out.
    """
    for flag in ("--workdir", "--data-dir", "--out", "--official", "--save-adversarial", *HOSTS):
        _, arguments = take_flag(arguments, flag)
    for flag in ("--checkpoint", "--checkpoints"):
        where, rest = take_flag(arguments, flag)
        if where is not None:
            named = (f"runs/{Path(w).name}" if os.path.isabs(w) else w for w in where.split(","))
            arguments = [f"{flag}={','.join(named)}", *rest]
    return f"{command} {public_command(arguments)}".strip()


def main(command: Callable[[list[str]], None]) -> None:
    """Runs a command. An error that the user can correct is one line on stderr and exit code 2.

    A command whose output nobody reads any more ends without a message.
    """
    end_with_parent()
    with stdout.ends_with_its_reader():
        _run(command)


def _run(command: Callable[[list[str]], None]) -> None:
    try:
        machine.configure()
        checkpoint.quiet()
        command(sys.argv[1:])
    except BrokenPipeError:
        if hosts.is_several():
            hosts.fail(
                "error: nobody reads the output of a process of this run", stdout.READER_GONE
            )
        raise
    except UserError as error:
        hosts.fail(f"error: {as_typed(str(error))}", 2)
    except OSError as error:  # a file or folder that may not be read or written
        where = f"{error.filename}: " if error.filename else ""
        hosts.fail(f"error: {where}{error.strerror or error}", 2)
    except (MemoryError, jax.errors.JaxRuntimeError, ValueError) as error:
        if hosts.is_loss(error):
            hosts.fail(hosts.LOST, 2)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        hosts.fail("error: out of memory: give a smaller --batch-size", 2)
    except KeyboardInterrupt:
        hosts.fail(
            "\ninterrupted: the same command goes on from the last saved state, if there is one",
            130,
        )
