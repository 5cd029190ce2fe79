"""bin/train: one run from a config."""

from irp_jax import config as configs
from irp_jax.cli.run import main, parse, publishable, take_flag
from irp_jax.config import Config
from irp_jax.report.terminal import Terminal
from irp_jax.training import experiment

ABOUT = """Train, prune and harden a network in one run.

--config=NAME or PATH.py takes the defaults from a file, by NAME from configs/.
Run the same command again to resume it."""


def train(arguments: list[str]) -> None:
    """Defaults come from `--config`, if given, and suit the data set; other flags override them."""
    path, rest = take_flag(arguments, "--config")
    default = Config() if path is None else configs.load(path)
    dataset, _ = take_flag(rest, "--dataset")
    if dataset not in (None, default.dataset):
        default = configs.suited(dataset, default)
    config = parse(Config, rest, "bin/train", default, ABOUT)
    terminal = Terminal()
    try:
        experiment.run(config, terminal, publishable("bin/train", arguments))
    finally:
        terminal.close()


if __name__ == "__main__":
    main(train)
