"""PGD with restarts here and in foolbox (JAX), torchattacks and cleverhans (PyTorch).

    pip install foolbox torchattacks cleverhans
    python -m benchmarks.pgd --checkpoints=runs/a,runs/b
    python -m benchmarks.pgd --checkpoints=runs/a --costs --out=results/bench_pgd_costs.json

The same weights, images, radius, step length and number of cores, or the same GPU. Each side is
used as its documentation has it: foolbox repeats the whole batch, torchattacks drops what has
is_adversarial after a restart, and so does the loop that cleverhans leaves to its users.
"""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import side_by_side
from benchmarks.side_by_side import Found, Side, Subject
from irp_jax import attacks, files
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError, unknown

RIVALS = ("foolbox", "torchattacks", "cleverhans")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare PGD with other libraries' on networks trained here."""

    checkpoints: str
    """Runs, separated by commas; residual networks only."""
    steps: int = 50
    """Of each restart."""
    restarts: int = 10
    """Independent runs for each image."""
    images: int | None = None
    """How many; test images first, then training images. Default: the test split."""
    epsilon: float | None = None
    """L-inf radius. Default: what each network was trained for."""
    batch_size: int = 256
    """Images attacked at once, on all sides."""
    slices: int = 2
    """How many parts the images are attacked in, the sides taking turns."""
    rivals: str = ",".join(RIVALS)
    """Which other libraries, separated by commas."""
    masked: bool = False
    """Let PyTorch attack the network as tools that only mask leave it: the arrays of the dense one,
    with zeros."""
    costs: bool = False
    """Vary images, steps and restarts one at a time instead, on the first network."""
    data_dir: str | None = None
    """Where the data set lies."""
    out: str = "results/bench_pgd.json"
    """Where the figures go."""

    @property
    def libraries(self) -> list[str]:
        return self.rivals.split(",")


def bench(arguments: list[str]) -> None:
    """Attacks every network by every library, prints a table, and writes it."""
    options = parse(Options, arguments, "python -m benchmarks.pgd")
    for name in ("steps", "restarts", "images", "batch_size", "slices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name in options.libraries:
        if name not in RIVALS:
            raise unknown("library", name, RIVALS)
    missing = [name for name in options.libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: pip install {' '.join(missing)}")
    side_by_side.prepare()
    console = Console(highlight=False, soft_wrap=True)
    commit = files.commit()
    common = {
        "environment": side_by_side.environment(),
        "command": publishable("python -m benchmarks.pgd", arguments),
        "commit": commit,
        "batch_size": options.batch_size,
    }
    if options.costs:
        subject = _load(options, options.checkpoints.split(",")[0], console)
        costs = _costs(options, subject, console)
        files.write_json(Path(options.out), {"costs": costs, "network": subject.name} | common)
        console.print(f"written to {options.out}")
        return
    rows: list[dict[str, Any]] = []
    for checkpoint in options.checkpoints.split(","):
        subject = _load(options, checkpoint, console)
        sides = _sides(options, subject)
        rows.append(side_by_side.compare(subject, sides, options.slices, console.print))
        show(rows, options, console)
        settings = {"steps": options.steps, "restarts": options.restarts}
        files.write_json(Path(options.out), {"networks": rows} | settings | common)
    console.print(f"written to {options.out}")


def _load(options: Options, checkpoint: str, console: Console) -> Subject:
    return side_by_side.load(
        checkpoint, images=options.images, epsilon=options.epsilon, data_dir=options.data_dir,
        say=console.print,
    )  # fmt: skip


def _sides(options: Options, subject: Subject) -> Mapping[str, Side]:
    listed = [attacks.Pgd(gradient_steps=options.steps, restarts=options.restarts)]
    twin = side_by_side.twin(subject, masked=options.masked)
    makers: dict[str, Callable[[], Attack]] = {
        "foolbox": lambda: _foolbox(options, subject),
        "torchattacks": lambda: _torchattacks(options, subject, twin),
        "cleverhans": lambda: _cleverhans(options, subject, twin),
    }
    masked = {name: f"{name}, masked" for name in ("torchattacks", "cleverhans") if options.masked}
    rivals = {masked.get(name, name): makers[name]() for name in options.libraries}
    ours = functools.partial(side_by_side.evaluate, subject, listed, options.batch_size)
    return {"irp_jax": ours} | {
        name: functools.partial(_in_batches, attack, options.batch_size)
        for name, attack in rivals.items()
    }


Attack = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Images (B, H, W, C) and labels (B,) -> (B,) bool: which still stand."""


def _in_batches(attack: Attack, size: int, images: np.ndarray, labels: np.ndarray) -> Found:
    began = time.perf_counter()
    robust = 0
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        robust += int(attack(images[part], labels[part]).sum())
    seconds = time.perf_counter() - began
    return Found(
        images=len(images), robust={"pgd": robust}, seconds={"pgd": seconds}, total=seconds
    )


def _foolbox(options: Options, subject: Subject) -> Attack:
    import foolbox

    # One device with XLA's own threads: an eager loop queues up more programs than XLA has threads
    # for when they are spread over several, and hangs (docs/design.md on devices).
    network = jax.jit(Partial(subject.net.apply, subject.net.variables))
    model = foolbox.JAXModel(network, bounds=(0, 1), data_format="channels_last")
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=subject.epsilon * attacks.STEP_RATIO, steps=options.steps, random_start=True
    ).repeat(options.restarts)

    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = jax.device_put((images, labels))
        _, _, is_adversarial = attack(model, x, y, epsilons=subject.epsilon)
        return ~np.asarray(is_adversarial)

    return run


def _torchattacks(options: Options, subject: Subject, twin: torch.nn.Module) -> Attack:
    import torchattacks

    step = subject.epsilon * attacks.STEP_RATIO
    runs = [
        torchattacks.PGD(twin, eps=subject.epsilon, alpha=step, steps=options.steps)
        for _ in range(options.restarts)
    ]
    attack = torchattacks.MultiAttack(runs) if len(runs) > 1 else runs[0]

    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = side_by_side.tensors(images, labels)
        torch.manual_seed(0)
        with torch.no_grad():
            right = twin(x).argmax(1) == y
        found = attack(x[right], y[right])
        with torch.no_grad():
            right[right.clone()] = twin(found).argmax(1) == y[right]
        return right.cpu().numpy()

    return run


def _cleverhans(options: Options, subject: Subject, twin: torch.nn.Module) -> Attack:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    step = subject.epsilon * attacks.STEP_RATIO

    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = side_by_side.tensors(images, labels)
        with torch.no_grad():
            right = twin(x).argmax(1) == y
        torch.manual_seed(0)
        for _ in range(options.restarts):
            if not right.any():
                break
            found = projected_gradient_descent(
                twin, x[right], subject.epsilon, step, options.steps, np.inf,
                clip_min=0.0, clip_max=1.0, y=y[right], sanity_checks=False,
            )  # fmt: skip
            with torch.no_grad():
                right[right.clone()] = twin(found).argmax(1) == y[right]
        return right.cpu().numpy()

    return run


BASE = {"images": 256, "steps": 20, "restarts": 2}
VARIED = {
    "images": (64, 128, 256, 512, 1024),
    "steps": (5, 10, 20, 40, 80),
    "restarts": (1, 2, 4, 8),
}


def _costs(options: Options, subject: Subject, console: Console) -> list[dict[str, Any]]:
    """Seconds of each side as one number varies and the others stay at `BASE`."""
    found = []
    for varied, values in VARIED.items():
        for value in values:
            settings = BASE | {varied: value}
            count = settings["images"]
            some = dataclasses.replace(
                subject, images=subject.images[:count], labels=subject.labels[:count]
            )
            if len(some.images) < count:
                continue
            sides = _sides(
                dataclasses.replace(
                    options, steps=settings["steps"], restarts=settings["restarts"]
                ),
                some,
            )
            for name, side in sides.items():
                if name in ("irp_jax", "foolbox"):
                    side(some.images, some.labels)  # compiles
                result = side(some.images, some.labels)
                console.print(f"{varied} {value}: {name} {result.total:.1f} s")
                found.append(
                    {"varied": varied, "value": value, "side": name, "seconds": result.total}
                    | settings
                )  # fmt: skip
    return found


def show(rows: list[dict[str, Any]], options: Options, console: Console) -> None:
    """A line for each side on each network."""
    title = f"PGD-{options.steps} with {options.restarts} restarts, L-inf"
    table = Table(title=title)
    for name in ("network", "library", "accuracy", "s", "x slower"):
        table.add_column(name, justify="left" if name in ("network", "library") else "right")
    for row in rows:
        for name, found in row.items():
            if not isinstance(found, dict):
                continue
            seconds = found["total"]
            table.add_row(
                row["checkpoint"], name, f"{found['accuracy']['pgd']:.2%}", f"{seconds:.1f}",
                f"{seconds / row['irp_jax']['total']:.2f}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main(bench)
