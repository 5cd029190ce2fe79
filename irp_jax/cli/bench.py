"""bin/bench train: the time of a training step here and of the same step in PyTorch.

PyTorch is installed with `pip install torch`. On Linux that includes CUDA. Without a GPU the CPU
build in PyTorch's own package index is enough, and it is a tenth of the size.

Both run on the same device. On a GPU both compute convolutions and matrix products in TF32, which
is JAX's default, and PyTorch is also timed as a CUDA graph.
"""

import dataclasses
import os
import statistics
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from irp_jax import config as configs
from irp_jax import files, machine
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.config import Config
from irp_jax.errors import UserError, unknown
from irp_jax.report.console import timing
from irp_jax.report.console.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time one Fast AT step on 32 x 32 x 3 images: dense, masked, compact and in PyTorch."""

    model: str = "resnet20"
    """Any model of this package. Only residual networks have an equivalent in PyTorch."""
    batch_size: int = 128
    """Images per step, summed over all devices."""
    budget: str = "0.16"
    """Size of the compact network, as a fraction of the dense MACs."""
    rounds: int = 7
    """How often each variant is timed. The variants take turns."""
    steps: int | None = None
    """Training steps per timing. Default: 4 on a CPU, otherwise 50 as in training."""
    torch: bool = True
    """Also time PyTorch."""
    run: str | None = None
    """results.json of a whole run, to compare its speed with PyTorch too. The run must have been
    alone on this machine."""
    out: str = "runs/bench_train.json"
    """JSON file to write the times to."""


def bench(arguments: list[str]) -> None:
    """Runs a benchmark. `train` is the only one."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            arguments = ["train", "--help"]
        else:
            raise UserError("name the benchmark: bin/bench train")
    if arguments[0] != "train":
        raise unknown("benchmark", arguments[0], ["train"])
    options = parse(Options, arguments[1:], "bin/bench train")
    for name in ("rounds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    config = Config(model=options.model, budget=options.budget, batch_size=options.batch_size)
    configs.check(config)
    files.check_place(Path(options.out))
    device = _prepare_torch() if options.torch else None
    whole_run = None if options.run is None else _whole_run(Path(options.run), config)
    console = plain_console()
    report = _measure(config, options, device, console) | {
        "command": publishable("bin/bench", arguments),
        "commit": files.commit(),
    }
    if options.torch:
        report["rival"] = _rival(report["seconds_per_step"])
        report["speedup"] |= _speedups(report, whole_run)
    timing.show(report, console)
    files.write_json(Path(options.out), report)
    console.print(f"written to {options.out}")


def _measure(
    config: Config, options: Options, device: str | None, console: Console
) -> dict[str, Any]:
    """Times all variants, PyTorch's on `device`; those are left out if `device` is None."""
    from irp_jax.benchmark import step_time

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    steps = options.steps or (4 if jax.default_backend() == "cpu" else 50)
    trainers = step_time.Trainers(config, steps)
    bursts = {
        "dense": trainers.dense_step(),
        "channel": trainers.masked_step("channel"),
        "weight": trainers.masked_step("weight"),
        "compact": trainers.compact_step(),
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
    environment = machine.describe() | {"load_average": load}
    if device is not None:
        environment |= {
            "torch": metadata.version("torch"), "torch_threads": machine.cores(),
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
            name: timing.ratio(seconds[name], seconds["dense"]) for name in ("channel", "weight")
        },
        "speedup": {},
        "environment": environment,
    }


def _rival(seconds: dict[str, list[float]]) -> str:
    """Returns the name of the fastest dense PyTorch variant on this machine."""
    ways = [name for name in ("torch", "torch_graph") if name in seconds]
    return min(ways, key=lambda name: statistics.median(seconds[name]))


def _speedups(report: dict[str, Any], whole_run: float | None) -> dict[str, float]:
    """Returns how many times faster than `_rival` each variant is.

    Every entry but "measured_run" is a median of round-by-round ratios.
    """
    seconds, first = report["seconds_per_step"], report["freeze_fraction"]
    rival = seconds[report["rival"]]
    run = [
        first * masked + (1 - first) * compact
        for masked, compact in zip(seconds["channel"], seconds["compact"], strict=True)
    ]
    found = {name: timing.ratio(rival, times) for name, times in seconds.items()}
    found["predicted_run"] = timing.ratio(rival, run)
    if whole_run is not None:
        found["measured_run"] = statistics.median(rival) / report["batch_size"] * whole_run
    return found


def _whole_run(path: Path, config: Config) -> float:
    """Returns the images per second over the whole training of a run."""
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
    if device != (here := machine.describe()["device"]):
        raise UserError(f"{path} is of a run on {device}, and this is {here}: give a run on it")
    return rate


def _prepare_torch() -> str:
    """Returns the device that PyTorch runs on.

    Raises:
        UserError: PyTorch is not installed, or it cannot use the device that JAX uses.
    """
    if util.find_spec("torch") is None:
        raise UserError(
            "PyTorch is not installed: pip install torch (without a GPU the CPU build is enough, "
            "and smaller), or leave it out with --no-torch"
        )
    # Idle OpenMP threads spin by default and would take cores from JAX while it is timed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    from irp_jax.benchmark import torch_device

    return torch_device.prepare()


if __name__ == "__main__":
    main(bench)
