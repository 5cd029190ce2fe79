"""bin/train: trains one network from a config."""

from irp_jax import config as configs
from irp_jax.cli.run import main, parse, publishable, take_flag
from irp_jax.config import Config
from irp_jax.report.terminal import Terminal
from irp_jax.training import experiment

ABOUT = """Train and prune a robust network in one run.

--config=NAME takes the defaults from configs/NAME.py, --config=PATH.py from a file of your own.
Give the same command again to resume an interrupted run."""


def train(arguments: list[str]) -> None:
    """Trains a network.

    The defaults are those of `--config`, or those for the data set. Other flags override them.
    """
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
