"""bin/train: one run from a config."""

import shlex

from irp_jax import config as configs
from irp_jax.cli.run import main, parse
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report.terminal import Terminal
from irp_jax.training import loop


def train(arguments: list[str]) -> None:
    """Defaults come from `--config`, if given, and suit the data set; other flags override them."""
    command = shlex.join(["bin/train", *arguments])
    path, rest = _take_flag(arguments, "--config")
    default = Config() if path is None else configs.load(path)
    dataset, _ = _take_flag(rest, "--dataset")
    if dataset not in (None, default.dataset):
        default = configs.suited(dataset, default)
    config = parse(Config, rest, "bin/train", default)
    terminal = Terminal()
    try:
        loop.run(config, terminal, command)
    finally:
        terminal.close()


def _take_flag(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """A flag's value and the arguments without it."""
    value, rest = None, list(arguments)
    for index, word in enumerate(arguments):
        if word == flag:
            if index + 1 == len(arguments):
                raise UserError(f"{flag} needs a value")
            value, rest = arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        elif word.startswith(flag + "="):
            value, rest = word.partition("=")[2], arguments[:index] + arguments[index + 1 :]
    return value, rest


if __name__ == "__main__":
    main(train)
