"""Code that all commands share: parsing of typed flags, and errors as one line."""

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from irp_jax import checkpoint, hosts, parallel
from irp_jax.cli import COMMANDS, stderr, stdout
from irp_jax.cli.parent import end_with_parent
from irp_jax.config import fraction
from irp_jax.errors import UserError, unknown
from irp_jax.paths import public_command

Parsed = TypeVar("Parsed")

HOSTS = ("--coordinator", "--processes", "--process")
"""Flags of a command that runs in several processes: see `hosts.start`."""
ABOUT_HOSTS = """--coordinator=HOST:PORT --processes=N --process=I makes this process I of N, on one
host or several. Slurm, Kubernetes and TPU pods need none of them (docs/scale.md)."""


def as_typed(text: str) -> str:
    """Replaces bin/NAME by `irp-jax NAME` in a text, unless this is a checkout, which has bin/."""
    if (Path(__file__).parents[2] / "bin" / "train").is_file():
        return text
    return re.sub(rf"(?<![\w/.])bin/(?=(?:{'|'.join(COMMANDS)})\b(?![/.]))", "irp-jax ", text)


class _Refused(Exception):
    """Raised for a word that is not a number.

    It is no ValueError, because the flag parser catches those and prints a framed message. Its
    arguments are the word, a text that says what is needed, and the type of the flag.
    """


def parse(
    kind: type[Parsed],
    arguments: list[str],
    prog: str,
    default: Parsed | None = None,
    about: str | None = None,
) -> Parsed:
    """Parses flags into a dataclass. A float may be written as a fraction, for instance 8/255.

    Args:
        kind: the dataclass.
        arguments: the command line without the program's name.
        prog: the name of the command.
        default: the values of flags that are not given.
        about: the first text of --help; the docstring of the dataclass if None.

    Raises:
        UserError: a flag is unknown, lacks its value or takes none, or a required flag is missing.
    """
    _check_written(kind, arguments, needed=default is None)
    registry = ConstructorRegistry()

    def number(text: str) -> float:
        try:
            return fraction(text)
        except UserError as error:
            raise _Refused(text, "a number, for instance 0.03 or 8/255", float) from error

    def whole(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise _Refused(text, "a whole number", int) from None

    @registry.primitive_rule
    def choice(info: Any) -> PrimitiveConstructorSpec | None:
        """Accepts any word. The check of the config reports a wrong one, with all choices."""
        if get_origin(info.type) is not Literal:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(get_args(info.type)) + "}",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        )

    for numeric, read in ((float, number), (int, whole)):

        @registry.primitive_rule
        def rule(
            info: Any, numeric: type = numeric, read: Callable = read
        ) -> PrimitiveConstructorSpec | None:
            if info.type is not numeric:
                return None
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar=numeric.__name__.upper(),
                instance_from_str=lambda words: read(words[0]),
                is_instance=lambda value: isinstance(value, int | float),
                str_from_instance=lambda value: [f"{value:g}" if numeric is float else str(value)],
            )

    try:
        # Tyro takes None for a default value, so the argument is left out if there is no default.
        given = {} if default is None else {"default": default}
        parsed, unread = tyro.cli(  # type: ignore[call-overload]
            kind, args=arguments, prog=as_typed(prog), description=about, registry=registry,
            return_unknown_args=True, **given,
        )  # fmt: skip
    except _Refused as error:
        word, meant, numeric = error.args
        alike = [
            name
            for name, field in _flags(kind).items()
            if numeric in (field.type, *get_args(field.type))
        ]
        flag = _given(word, arguments, alike)
        raise UserError(f"{flag} must be {meant}, got {word!r}") from error
    if unread and not unread[0].startswith("-"):
        raise UserError(f"{unread[0]!r} belongs to no flag: give --flag=value, see --help")
    if unread:
        raise unknown("flag", unread[0].partition("=")[0], _flags(kind))
    homes = {
        field.name: os.path.expanduser(value)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if isinstance(value := getattr(parsed, field.name), str) and value.startswith("~")
    }
    return dataclasses.replace(parsed, **homes)


def _flags(kind: Any) -> dict[str, dataclasses.Field]:
    """Returns flag -> field of a dataclass."""
    return {"--" + field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}


def _given(word: str, arguments: list[str], flags: Collection[str]) -> str:
    """Returns the one of some flags that was given this value, for an error message."""
    for before, argument in itertools.pairwise(["", *arguments]):
        name, equals, value = argument.partition("=")
        flag, found = (name, value) if equals else (before, argument)
        if found == word and flag.replace("_", "-") in flags:
            return flag
    return "a value"


def _check_written(kind: Any, arguments: list[str], needed: bool) -> None:
    """Raises the errors of `parse` as one line. The flag parser would print framed messages."""
    if {"--help", "-h"} & set(arguments):
        return
    fields, given = _flags(kind), set()
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        switch = name.replace("--no-", "--", 1)
        if switch in fields and fields[switch].type is bool:
            if equals:
                raise UserError(f"{name} takes no value: give {switch} or --no-{switch[2:]}")
        elif name in fields and (not value if equals else following.startswith("--")):
            raise UserError(f"{name} needs a value")
        given.add(name)
    first = arguments[0] if arguments else "--"
    if needed and not first.startswith("-"):  # before a flag that is missing
        raise UserError(f"{first!r} belongs to no flag: give --flag=value, see --help")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if needed and required and name not in given:
            raise UserError(f"{name} is needed: see --help")


def take_flag(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Returns a flag's value, or None if it is not given, and the arguments without the flag.

    If the flag is given several times, the last value counts and all are removed. --data_dir is
    read as --data-dir.

    Raises:
        UserError: the flag is the last argument and has no value.
    """
    value, rest, words = None, [], iter(arguments)
    for word in words:
        name, equals, given = word.partition("=")
        if name.replace("_", "-") != flag:
            rest.append(word)
            continue
        value = given if equals else next(words, None)
        if value is None:
            raise UserError(f"{flag} needs a value")
    return value and os.path.expanduser(value), rest  # shells do not expand ~ in --flag=~/folder


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
        parallel.configure()
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
