"""Removes the folders of this machine from texts that will be published."""

import shlex
from pathlib import Path
from typing import Any


def public(text: str) -> str:
    """Returns a path without the folders of this machine.

    Of an absolute path, of one in the home folder and of one that leaves the working folder, only
    the name is left. Other texts are returned as they are.
    """
    path = Path(text)
    private = path.is_absolute() or text.startswith("~") or ".." in path.parts
    return path.name if private else text


def public_command(words: list[str]) -> str:
    """Returns a command line in which the values of flags, and all other words, are `public`."""

    def shown(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return flag + equals + ",".join(map(public, value.split(",")))

    return shlex.join(map(shown, words))


def public_results(value: Any) -> Any:
    """Returns JSON values in which every text is `public`, and every `command` a public command."""
    if isinstance(value, dict):
        return {
            key: public_command(shlex.split(inner))
            if key == "command" and isinstance(inner, str)
            else public_results(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [public_results(inner) for inner in value]
    return public(value) if isinstance(value, str) else value
