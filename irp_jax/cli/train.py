"""bin/train: trains one network from a config, or shows what that would do."""

import json

from irp_jax import config as configs
from irp_jax import hosts
from irp_jax.cli.common import ABOUT_HOSTS, join, main, publishable, take_hosts
from irp_jax.cli.flags import parse, take_flag
from irp_jax.config import Config
from irp_jax.report.console import names
from irp_jax.report.console.terminal import Terminal, cost_table, plain_console
from irp_jax.training import experiment
from irp_jax.training.preview import Preview, preview

ABOUT = f"""Train and prune a robust network in one run.

--config=NAME takes the defaults from configs/NAME.py, --config=PATH.py from a file of your own.
Give the same command again to resume an interrupted run.

--dry-run prints all settings, the cost of each layer at the budget and an estimate of the memory,
and writes nothing. --list prints the names of models, data sets, methods, defenses, attacks and
configs.

{ABOUT_HOSTS}"""


def train(arguments: list[str]) -> None:
    """Trains a network.

    The defaults are those of `--config`, or those for the data set. Other flags override them.
    """
    if "--list" in arguments:
        _list()
        return
    dry = "--dry-run" in arguments
    joined, rest = take_hosts([word for word in arguments if word != "--dry-run"])
    path, rest = take_flag(rest, "--config")
    default = Config() if path is None else configs.load(path)
    dataset, _ = take_flag(rest, "--dataset")
    if dataset not in (None, default.dataset):
        default = configs.suited(dataset, default)
    config = parse(Config, rest, "bin/train", default, ABOUT)
    if dry:
        _show(preview(config))
        return
    join(joined)
    terminal = Terminal(quiet=not hosts.is_first())
    try:
        experiment.run(config, terminal, publishable("bin/train", arguments))
    finally:
        terminal.close()


def _list() -> None:
    console = plain_console()
    console.print(names.table(names.names(), "names", "flag", "takes"))
    described = names.described_configs()
    console.print(names.table(described, "--config takes PATH.py, or one of:", "config", "runs"))


def _show(found: Preview) -> None:
    console = plain_console()
    print(json.dumps(found.settings, indent=2))
    console.print(cost_table(found.layers))
    plan, cost = found.plan, found.cost
    channels = "these channels" if found.is_chosen else "uniform pruning to the budget"
    total = sum(found.memory.values())
    for line in (
        f"the table is of {channels}: {cost['macs']:,} of {cost['dense_macs']:,} MACs "
        f"({cost['macs_ratio']:.1%}), {cost['params']:,} of {cost['dense_params']:,} parameters "
        f"({cost['params_ratio']:.1%})",
        *_latency(found),
        *(() if found.is_chosen else ("the method chooses its own channels within the budget",)),
        f"{plan.epochs} epochs of {plan.steps_per_epoch} steps, masks frozen after epoch "
        f"{plan.freeze_epoch}"
        + ("" if plan.quantize_epoch is None else f", int8 after epoch {plan.quantize_epoch}"),
        f"memory of a device, before the masks are frozen: about {_size(total)} ("
        + ", ".join(f"{name} {_size(count)}" for name, count in found.memory.items())
        + "); compiled programs can need less or more",
        f"it would run in {found.workdir}; nothing was written",
    ):
        console.print(line, markup=False, highlight=False)


def _latency(found: Preview) -> list[str]:
    """Returns a line with the latency of an image, if the budget counts it."""
    if "latency" not in found.cost:
        return []
    left, dense = found.cost["latency"] / 1e6, found.cost["dense_latency"] / 1e6
    return [
        f"latency by the table: {left:.3f} of {dense:.3f} ms ({found.cost['latency_ratio']:.1%}), "
        f"budget {found.plan.limit / 1e6:.3f} ms"
    ]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    main(train)
