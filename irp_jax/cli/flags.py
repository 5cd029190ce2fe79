"""Parses the flags of commands into typed objects. Every error is one line."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from irp_jax.cli import as_typed
from irp_jax.config import fraction
from irp_jax.errors import UserError, unknown

Parsed = TypeVar("Parsed")


class _Refused(Exception):
    """Raised for a word that is not a number.

    It is no ValueError, because the flag parser catches those and prints a framed message. Its
    arguments are the word, a text that says what is needed, and the type of the flag.
    """


def _float(text: str) -> float:
    try:
        return fraction(text)
    except UserError as error:
        raise _Refused(text, "a number, for instance 0.03 or 8/255", float) from error


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _Refused(text, "a whole number", int) from None


TYPES = ConstructorRegistry()
"""How words become values of the types float, int and Literal."""


@TYPES.primitive_rule
def _number(info: Any) -> PrimitiveConstructorSpec | None:
    kind = info.type
    if kind not in (float, int):
        return None
    read: Callable[[str], float] = _float if kind is float else _int
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}" if kind is float else str(value)],
    )


@TYPES.primitive_rule
def _choice(info: Any) -> PrimitiveConstructorSpec | None:
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
    # Tyro takes None for a default value, so the argument is left out if there is no default.
    given = {} if default is None else {"default": default}
    try:
        parsed, unread = tyro.cli(  # type: ignore[call-overload]
            kind, args=arguments, prog=as_typed(prog), description=about, registry=TYPES,
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
