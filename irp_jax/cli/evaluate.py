"""bin/evaluate: how accurate a trained network is under attack."""

import dataclasses
from pathlib import Path

from irp_jax import data, evaluation, files, network, parallel
from irp_jax.cli.run import main, parse, publishable
from irp_jax.errors import UserError
from irp_jax.report.terminal import Terminal, result_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a trained network on the test split of the data it was trained on."""

    checkpoint: str
    """A run's workdir, such as runs/<name>, or one checkpoint in it."""
    attack: str = "pgd"
    """pgd, fgsm or none."""
    norm: str = "linf"
    """linf or l2."""
    epsilon: float | None = None
    """Radius in pixels of [0, 1], e.g. 8/255. Default: what the network was trained for."""
    steps: int = 10
    """Gradient steps of each restart."""
    step_size: float | None = None
    """Length of a step. Default: epsilon / 4."""
    restarts: int = 1
    """Random starts for each image; the worst counts."""
    images: int | None = None
    """Only the first so many test images."""
    batch_size: int = 512
    """Images attacked at once."""
    dataset: str | None = None
    """Another set or PATH.npz to test on. Default: that of the run."""
    data_dir: str | None = None
    """Where the data set lies. Default: as in the run."""
    seed: int = 0
    """Of the random starts."""
    out: str | None = None
    """Also write the figures to this JSON file."""


def evaluate(arguments: list[str]) -> None:
    """Prints a table; `--out` writes what it shows."""
    options = parse(Options, arguments, "bin/evaluate")
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    terminal = Terminal()
    net = network.load(options.checkpoint, terminal.note)
    config = net.config
    spec = evaluation.AttackSpec(
        name=options.attack,  # type: ignore[arg-type]  # checked by AttackSpec
        norm=options.norm,  # type: ignore[arg-type]
        epsilon=config.epsilon if options.epsilon is None else options.epsilon,
        steps=options.steps,
        step_size=options.step_size,
        restarts=options.restarts,
        seed=options.seed,
    )
    name = options.dataset or config.dataset
    dataset = data.load(name, data_dir=options.data_dir or config.data_dir, validation_fraction=0.0)
    if (dataset.image_shape, dataset.num_classes) != (net.image_shape, len(net.class_names)):
        raise UserError(
            f"{name} has images {dataset.image_shape} of {dataset.num_classes} classes, not "
            f"{net.image_shape} of {len(net.class_names)} as in training: choose another --dataset"
        )
    test = dataset.test
    images, labels = test.images[: options.images], test.labels[: options.images]
    mesh = parallel.mesh(parallel.usable_devices(options.batch_size))
    terminal.note(f"attacking {len(images)} images of {name} with {spec.name}")
    try:
        report = evaluation.evaluate(
            net.apply, net.variables, images, labels, spec,
            batch_size=options.batch_size, mesh=mesh, progress=terminal.evaluating,
        )  # fmt: skip
    finally:
        terminal.close()
    accuracy = {"natural": report.natural}
    if spec.name != "none":
        accuracy[spec.name] = report.robust
    results = {
        "model": config.model,
        "dataset": name,
        "method": config.method,
        "seed": config.seed,
        "cost": net.cost,
        "accuracy": accuracy,
        "attack": spec.describe() | {"images": report.images},
        "epochs": net.epoch,
        "wall_time_s": round(report.seconds, 1),
        "environment": parallel.describe(),
        "command": publishable("bin/evaluate", arguments),
        "commit": files.commit(),
    }
    if options.out is not None:
        files.write_json(Path(options.out), results)
    terminal.console.print(result_table(results))


if __name__ == "__main__":
    main(evaluate)
