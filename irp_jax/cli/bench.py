"""bin/bench train: what a training step takes here, beside the same step in PyTorch.

PyTorch comes with `pip install torch`. On Linux that brings CUDA along; the CPU build in PyTorch's
own package index offers is a tenth of the size and is all that is needed without a GPU.

Both run on the same device. On a GPU both compute convolutions and products in TF32, as JAX does
unless told otherwise, and PyTorch is timed as a CUDA graph as well.
"""

import dataclasses
import os
import statistics
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from irp_jax import config as configs
from irp_jax import files, parallel
from irp_jax.cli.run import main, parse, publishable
from irp_jax.config import Config
from irp_jax.errors import UserError, unknown

TITLES = {
    "dense": "irp_jax dense",
    "channel": "irp_jax masked (channel)",
    "weight": "irp_jax masked (weight)",
    "slim": "irp_jax slim",
    "torch": "PyTorch dense",
    "torch_masked": "PyTorch masked",
    "torch_graph": "PyTorch dense, CUDA graph",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time one Fast AT step on 32 x 32 x 3 images: dense, masked and slim, and in PyTorch."""

    model: str = "resnet20"
    """Any model; PyTorch has a twin of the residual ones."""
    batch_size: int = 128
    """Images per step, over all devices."""
    budget: str = "0.16"
    """How small the slim network is, of the dense MACs."""
    rounds: int = 7
    """How often each contender is timed, in turn with the others."""
    steps: int | None = None
    """Steps per timing. Default: 4 on a CPU, elsewhere 50, as in training."""
    torch: bool = True
    """Whether PyTorch takes part."""
    run: str | None = None
    """results.json of a whole run that had this machine to itself, to compare with PyTorch too."""
    out: str = "runs/bench_train.json"
    """Where the figures go."""


def bench(arguments: list[str]) -> None:
    """`train` is the one benchmark there is."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            arguments = ["train", "--help"]
        else:
            raise UserError("say what to time: bin/bench train")
    if arguments[0] != "train":
        raise unknown("benchmark", arguments[0], ["train"])
    options = parse(Options, arguments[1:], "bin/bench train")
    for name in ("rounds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    config = Config(model=options.model, budget=options.budget, batch_size=options.batch_size)
    configs.check(config)
    device = _prepare_torch() if options.torch else None
    whole_run = None if options.run is None else _whole_run(Path(options.run), config)
    console = Console(highlight=False, soft_wrap=True)
    report = _measure(config, options, device, console) | {
        "command": publishable("bin/bench", arguments),
        "commit": files.commit(),
    }
    if options.torch:
        report["rival"] = _rival(report["seconds_per_step"])
        report["speedup"] |= _speedups(report, whole_run)
    files.write_json(Path(options.out), report)
    show(report, console)
    console.print(f"written to {options.out}")


def _measure(
    config: Config, options: Options, device: str | None, console: Console
) -> dict[str, Any]:
    """Times the contenders, PyTorch's on `device` where there is one."""
    from benchmarks import step_time

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    steps = options.steps or (4 if jax.default_backend() == "cpu" else 50)
    trainers = step_time.Trainers(config, steps)
    bursts = {
        "dense": trainers.dense_step(),
        "channel": trainers.masked_step("channel"),
        "weight": trainers.masked_step("weight"),
        "slim": trainers.slim_step(),
    }
    if device == "cuda":
        bursts["torch_graph"] = trainers.torch_step(device, graphed=True)
    if device is not None:
        bursts["torch"] = trainers.torch_step(device)
        bursts["torch_masked"] = trainers.torch_step(device, masked=True)
    console.print(f"{config.model}, batch {config.batch_size}: compiling {len(bursts)} trainers")
    with console.status("") as status:
        times = step_time.interleaved(
            bursts, options.rounds, steps,
            lambda done: status.update(f"round {done} of {options.rounds}"),
        )  # fmt: skip
    seconds = {name: t.wall for name, t in times.items()}
    environment = parallel.describe() | {"load_average": load}
    if device is not None:
        environment |= {
            "torch": metadata.version("torch"), "torch_threads": parallel.cores(),
            "torch_device": device,
        }  # fmt: skip
    return {
        "model": config.model,
        "batch_size": config.batch_size,
        "budget": config.budget,
        "macs_ratio": trainers.cost_ratio,
        "freeze_fraction": trainers.plan.freeze_epoch / trainers.plan.epochs,
        "steps_per_timing": steps,
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": {name: t.cpu for name, t in times.items()},
        "mask_overhead": {
            name: _ratio(seconds[name], seconds["dense"]) for name in ("channel", "weight")
        },
        "speedup": {},
        "environment": environment,
    }


def _rival(seconds: dict[str, list[float]]) -> str:
    """Dense PyTorch at its fastest here."""
    ways = [name for name in ("torch", "torch_graph") if name in seconds]
    return min(ways, key=lambda name: statistics.median(seconds[name]))


def _speedups(report: dict[str, Any], whole_run: float | None) -> dict[str, float]:
    """How many times faster than the rival; every entry a median of round-by-round ratios."""
    seconds, first = report["seconds_per_step"], report["freeze_fraction"]
    rival = seconds[report["rival"]]
    run = [
        first * masked + (1 - first) * slim
        for masked, slim in zip(seconds["channel"], seconds["slim"], strict=True)
    ]
    found = {name: _ratio(rival, times) for name, times in seconds.items()}
    found["predicted_run"] = _ratio(rival, run)
    if whole_run is not None:
        found["measured_run"] = statistics.median(rival) / report["batch_size"] * whole_run
    return found


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _whole_run(path: Path, config: Config) -> float:
    """Images per second over all of a run's training."""
    results = files.read_json(path)
    try:
        model, batch_size = results["model"], results["config"]["batch_size"]
        rate = float(results["images_per_s"])
        device = results["environment"]["device"]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is no results.json of a run: give runs/<name>/results.json"
        ) from None
    if (model, batch_size) != (config.model, config.batch_size):
        raise UserError(
            f"{path} is of {model} at batch {batch_size}, not {config.model} at "
            f"{config.batch_size}: give --model={model} --batch-size={batch_size}"
        )
    if device != (here := parallel.describe()["device"]):
        raise UserError(f"{path} is of a run on {device}, and this is {here}: give one of here")
    return rate


def _prepare_torch() -> str:
    """Returns the device that PyTorch runs on.

    Raises:
        UserError: there is no PyTorch, or it cannot use the device that JAX does.
    """
    if util.find_spec("torch") is None:
        raise UserError(
            "PyTorch is not installed: pip install torch (without a GPU the CPU build is enough, "
            "and smaller), or leave it out with --no-torch"
        )
    # Idle OpenMP threads spin by default, on the cores that JAX is being timed on.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    from benchmarks import torch_device

    return torch_device.prepare()


def show(report: dict[str, Any], console: Console) -> None:
    """The table, and what follows from it."""
    environment, batch = report["environment"], report["batch_size"]
    on_cpu = environment["platform"] == "cpu"
    where = f"{environment['cpu_count']} cores" if on_cpu else environment["device"]
    digits = 0 if on_cpu else 2
    table = Table(title=f"Fast AT step, {report['model']}, batch {batch}, 32 x 32 x 3, {where}")
    rival = TITLES[report.get("rival", "torch")]
    for title in ("", "ms/step", "CPU ms/step", "img/s", "of dense", f"x {rival}"):
        table.add_column(title, justify="right" if title else "left")
    seconds, speedup = report["seconds_per_step"], report["speedup"]
    for name, times in seconds.items():
        middle = statistics.median(times)
        of_dense = f"{_ratio(times, seconds['dense']):.3f}"
        cpu = statistics.median(report["cpu_seconds_per_step"][name])
        cells = [f"{value * 1e3:.{digits}f}" for value in (middle, cpu)]
        cells += [f"{batch / middle:.0f}", of_dense]
        title = TITLES[name] + (f" ({report['macs_ratio']:.3f} of MACs)" if name == "slim" else "")
        table.add_row(title, *cells, f"{speedup[name]:.2f}" if name in speedup else "-")
    console.print(table)
    overhead = ", ".join(f"{k} {v - 1:+.1%}" for k, v in report["mask_overhead"].items())
    console.print(f"masks cost: {overhead} of a dense step")
    if "predicted_run" in speedup:
        console.print(
            f"whole run, {report['freeze_fraction']:.0%} of it masked and the rest slim: "
            f"{speedup['predicted_run']:.2f} times as fast as {rival}"
        )
    if "measured_run" in speedup:
        console.print(f"the run given: {speedup['measured_run']:.2f} times as fast as {rival}")


if __name__ == "__main__":
    main(bench)
