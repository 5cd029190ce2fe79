"""What every command shares: parsing typed flags, and errors as one line."""

import dataclasses
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from irp_jax import checkpoint, parallel
from irp_jax.cli import COMMANDS
from irp_jax.config import fraction
from irp_jax.errors import UserError, unknown

Parsed = TypeVar("Parsed")


def as_typed(text: str) -> str:
    """Names commands as they are typed here: bin/train in a checkout, irp-jax train elsewhere."""
    if (Path(__file__).parents[2] / "bin" / "train").is_file():
        return text
    return re.sub(rf"\bbin/(?={'|'.join(COMMANDS)})", "irp-jax ", text)


class _Refused(Exception):
    """Carries a word that is no number out of the flag parser, which would frame a ValueError.

    Its arguments are the word, what it should have been and the type of its flag.
    """


def parse(
    kind: type[Parsed],
    arguments: list[str],
    prog: str,
    default: Parsed | None = None,
    about: str | None = None,
) -> Parsed:
    """Reads flags into a dataclass; every number may be written as a fraction, 8/255.

    Args:
        kind: the dataclass.
        arguments: without the program's name.
        prog: the command as the user typed it.
        default: values of flags that are not given.
        about: opens the help text; the dataclass's docstring if not given.

    Raises:
        UserError: a flag is unknown, needs a value or takes none, or one that is needed is missing.
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
        """Any word passes: the check of the whole names what it should have been."""
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
        # Without a default tyro must be given none, not None.
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
    """The fields of a dataclass by their flags."""
    return {"--" + field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}


def _given(word: str, arguments: list[str], flags: Collection[str]) -> str:
    """Which of these flags was given this value."""
    for before, argument in itertools.pairwise(["", *arguments]):
        name, equals, value = argument.partition("=")
        flag, found = (name, value) if equals else (before, argument)
        if found == word and flag.replace("_", "-") in flags:
            return flag
    return "a value"


def _check_written(kind: Any, arguments: list[str], needed: bool) -> None:
    """Refuses in one line what the flag parser would frame: see `parse`."""
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
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if needed and required and name not in given:
            raise UserError(f"{name} is needed: see --help")


def take_flag(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """A flag's value, None if it is not given, and the arguments without it.

    Given several times the last one counts, and none is left; --data_dir is --data-dir.

    Raises:
        UserError: the flag stands last, without a value.
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
    return value and os.path.expanduser(value), rest  # shells leave the ~ of --flag=~/folder


def publishable(command: str, arguments: list[str]) -> str:
    """The command line as it is written beside a result: without places on this machine."""
    for flag in ("--workdir", "--data-dir", "--out", "--official", "--save-adversarial"):
        _, arguments = take_flag(arguments, flag)
    for flag in ("--checkpoint", "--checkpoints"):
        where, rest = take_flag(arguments, flag)
        if where is not None:
            named = (f"runs/{Path(w).name}" if os.path.isabs(w) else w for w in where.split(","))
            arguments = [f"{flag}={','.join(named)}", *rest]
    for flag in ("--dataset", "--config", "--run", "--model", "--teacher"):
        where, rest = take_flag(arguments, flag)
        if where is not None and os.path.isabs(where):
            arguments = [f"{flag}={Path(where).name}", *rest]
    return f"{command} {shlex.join(arguments)}".strip()


def main(command: Callable[[list[str]], None]) -> None:
    """Runs a command: what its user can put right is one line on standard error and exit code 2."""
    try:
        parallel.configure()
        checkpoint.quiet()
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {as_typed(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a file or folder that may not be read or written
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: out of memory: give a smaller --batch-size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the same command goes on from what was saved last, if anything was",
            file=sys.stderr,
        )
        sys.exit(130)
