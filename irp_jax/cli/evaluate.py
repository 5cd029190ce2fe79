"""bin/evaluate: how accurate a trained network is under attack."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import attacks, checkpoint, data, evaluation, files, network, parallel
from irp_jax.attacks import AttackName, AttackSpec, Norm
from irp_jax.cli.run import main, parse, publishable
from irp_jax.config import EVALUATED_ON, fraction
from irp_jax.data.augment import to_float
from irp_jax.errors import UserError, extra, unknown
from irp_jax.report.terminal import (
    Terminal,
    attack_table,
    corruption_table,
    curve_table,
    result_table,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a trained network on the data it was trained on, images that it did not learn from."""

    checkpoint: str
    """A run's workdir, such as runs/<name>, one checkpoint in it, or a saved network."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: what was saved with it."""
    attack: AttackName = "pgd"
    """autoattack, pgd (counted both ways), pgd-last, fgsm, pgd-margin, apgd-ce, apgd-dlr, apgd-t,
    fab, fab-t, square or none."""
    version: str = "standard"
    """Of autoattack: standard, plus or rand."""
    norm: Norm = "linf"
    """linf, l2 or l1."""
    epsilon: float | None = None
    """Radius in pixels of [0, 1], e.g. 8/255. Default: what the network was trained for."""
    epsilons: str | None = None
    """Several radii, for instance 0,1/255,2/255,4/255,8/255: a robustness curve."""
    steps: int | None = None
    """Steps of each run. Default: the attack's usual number, 10 for pgd."""
    step_size: float | None = None
    """Length of a step of pgd and pgd-margin. Default: epsilon / 4."""
    restarts: int = 1
    """Random starts for each image; the worst counts."""
    split: Literal["test", "validation"] = "test"
    """Which images: test, or validation, those that the run held out while settings were chosen."""
    images: int | None = None
    """Only the first so many of them."""
    batch_size: int | None = None
    """Images attacked at once. Default: up to 512 a device, on a CPU what a core's cache holds."""
    dataset: str | None = None
    """Another set or PATH.npz to test on. Default: that of the run."""
    data_dir: str | None = None
    """Where the data set lies. Default: as in the run."""
    seed: int = 0
    """Of every draw."""
    corruptions: bool = False
    """Also measure accuracy under the 15 common corruptions at 5 severities each."""
    save_adversarial: str | None = None
    """Write the adversarial images to this .npz file, and a picture of some beside it."""
    out: str | None = None
    """Also write the figures to this JSON file."""


def evaluate(arguments: list[str]) -> None:
    """Prints a table; `--out` writes what it shows."""
    options = parse(Options, arguments, "bin/evaluate")
    if options.split not in EVALUATED_ON:
        raise unknown("split", options.split, EVALUATED_ON)
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    saving = options.save_adversarial
    if saving is not None:
        if Path(saving).suffix != ".npz":
            raise UserError(f"--save-adversarial must name an .npz file, got {saving}")
        with extra("plots"):  # missed now, not after the attack
            import irp_jax.report.plots  # noqa: F401
    for place in (options.out, saving):
        if place is not None:
            files.check_place(Path(place))
    terminal = Terminal()
    net = network.load(options.checkpoint, terminal.note, model=options.model)
    radii = _radii(options, net.epsilon)
    attacked = [radius for radius in radii if radius > 0] if options.epsilons else radii
    specs = [_spec(options, radius) for radius in attacked]
    name = options.dataset or net.record["trained"]["dataset"]
    images, labels = _test_set(options, net, name)
    if options.corruptions:  # too small ones are refused now, not after the attack
        with extra("data"):
            from irp_jax.data import corruptions
        corruptions.corrupt(images[:1], corruptions.CORRUPTIONS[0], 1)
    mesh, batch_size = _devices(options, images)
    began = time.perf_counter()
    last = None
    try:
        reports = _attack(options, net, specs, images, labels, mesh, batch_size, terminal)
        if options.attack == "pgd" and options.epsilons is None:
            last = evaluation.last_iterate(
                net.apply, net.variables, images, labels, specs[-1], reports[-1],
                batch_size=batch_size, mesh=mesh, callbacks=_callbacks(terminal),
            )  # fmt: skip
    finally:
        terminal.close()
    results: dict[str, Any] = {
        "model": net.name,
        "dataset": name,
        "method": net.record["trained"]["method"],
        "seed": net.record["trained"]["seed"],
        "cost": net.cost,
        "accuracy": {"natural": reports[-1].natural},
        "attack": specs[-1].describe() | {"images": len(images)} | _split(options),
        "epochs": net.epoch,
        "network_sha256": checkpoint.digest(net.variables),
        "wall_time_s": round(time.perf_counter() - began, 1),
        "environment": parallel.describe(),
        "command": publishable("bin/evaluate", arguments),
        "commit": files.commit(),
    }
    if options.epsilons is not None:
        robust = {spec.epsilon: report.robust for spec, report in zip(specs, reports, strict=True)}
        results["curve"] = {
            "epsilon": list(radii),
            "accuracy": [robust.get(radius, reports[-1].natural) for radius in radii],
        }
    else:
        results["accuracy"] |= _accuracies(specs[-1], reports[-1])
        if last is not None:
            results["accuracy"]["pgd-last"] = last.robust
        results["seconds"] = {k: round(v, 1) for k, v in reports[-1].seconds.items()}
    if options.corruptions:
        try:
            table = _corrupted(options, net, images, labels, mesh, batch_size, terminal)
        finally:
            terminal.close()
        results["corruptions"] = table
        results["accuracy"]["corrupted"] = float(np.mean(list(table.values())))
    results["warnings"] = sorted({line for report in reports for line in report.warnings})
    if options.out is not None:
        files.write_json(Path(options.out), results)
    if options.save_adversarial is not None:
        apart, picture = _save_adversarial(
            Path(options.save_adversarial), net, images, labels, reports[-1], mesh
        )
        drawn = f", some drawn in {picture}" if picture else ""
        terminal.note(f"adversarial images written to {options.save_adversarial}{drawn}")
        if apart:
            terminal.warn(f"{apart} of them look different to the network in batches of this size")
    for spec in specs:  # all is written: there is nothing left to go on from
        state_file = _state_file(options, net, spec, len(images))
        if state_file is not None:
            same, _, _ = state_file.name.rpartition("-")
            for other in state_file.parent.glob(f"{same}-*.npz"):  # of the run's earlier networks
                other.unlink(missing_ok=True)
    if "curve" in results:
        terminal.console.print(curve_table(results))
    elif options.attack == "autoattack":
        terminal.console.print(attack_table(results))
    if "corruptions" in results:
        terminal.console.print(corruption_table(results))
    terminal.console.print(result_table(results))


def _split(options: Options) -> dict[str, str]:
    """Which images, where they are not test images."""
    return {} if options.split == "test" else {"split": options.split}


def _radii(options: Options, usual: float) -> list[float]:
    """The radii to attack with, ascending; 0 stands for the natural images."""
    if options.norm not in attacks.NORMS:
        raise unknown("norm", options.norm, attacks.NORMS)
    if options.norm != "linf" and options.epsilon is None and options.epsilons is None:
        raise UserError(f"give the {options.norm} radius with --epsilon, for instance 0.5")
    if options.epsilons is None:
        return [usual if options.epsilon is None else options.epsilon]
    if options.attack == "none":
        raise UserError("--epsilons needs an attack: give --attack=pgd, for instance")
    if options.epsilon is not None:
        raise UserError("give --epsilon or --epsilons, not both")
    radii = sorted({fraction(word) for word in options.epsilons.split(",")})
    if not all(map(math.isfinite, radii)) or radii[0] < 0 or radii[-1] <= 0:
        raise UserError(
            f"--epsilons must be radii of 0 or more, one of them positive, got {options.epsilons}"
        )
    return radii


def _spec(options: Options, epsilon: float) -> AttackSpec:
    return AttackSpec(
        name=options.attack,
        norm=options.norm,
        epsilon=epsilon,
        steps=options.steps,
        step_size=options.step_size,
        restarts=options.restarts,
        version=options.version,
        seed=options.seed,
    )


def _test_set(options: Options, net: network.Network, name: str) -> tuple[np.ndarray, np.ndarray]:
    # On another machine, perhaps: nothing is put there.
    trained_on = net.record["trained"]["data_dir"]
    if options.dataset is None and name.endswith(".npz") and not Path(name).is_file():
        raise UserError(f"it was trained on {name}, which is not here: give --dataset=PATH")
    known = trained_on is not None and Path(trained_on).expanduser().is_dir()
    there = trained_on if known else None
    held_out = options.split == "validation"
    trained = net.record["trained"]
    if held_out and not trained.get("held_out"):
        raise UserError(
            f"{options.checkpoint} held out no images, or does not say which: give --split=test"
        )
    share = trained["validation"] if held_out else 0.0
    dataset = data.load(name, data_dir=options.data_dir or there, validation_fraction=share)
    if held_out and data.split_digest(dataset.validation) != trained["held_out"]:
        raise UserError(
            f"the images held out of {name} are not those of the run, so it may have learned from "
            f"them: give the --dataset that it was trained on, or --split=test"
        )
    if (dataset.image_shape, dataset.num_classes) != (net.image_shape, len(net.class_names)):
        raise UserError(
            f"{name} has images {dataset.image_shape} of {dataset.num_classes} classes, not "
            f"{net.image_shape} of {len(net.class_names)} as in training: choose another --dataset"
        )
    split = dataset.validation if held_out else dataset.test
    return split.images[: options.images], split.labels[: options.images]


def _devices(options: Options, images: np.ndarray) -> tuple[Mesh, int]:
    """The devices used, and how many images they attack at once."""
    if options.batch_size is not None:
        return parallel.mesh(parallel.usable_devices(options.batch_size)), options.batch_size
    mesh = parallel.mesh()
    return mesh, parallel.attacked_at_once(mesh, *images.shape[1:3])


def _callbacks(terminal: Terminal) -> attacks.Callbacks:
    return attacks.Callbacks(
        begin=terminal.attacking, progress=terminal.evaluating, warn=terminal.warn
    )


def _attack(
    options: Options,
    net: network.Network,
    specs: list[AttackSpec],
    images: np.ndarray,
    labels: np.ndarray,
    mesh: Mesh,
    batch_size: int,
    terminal: Terminal,
) -> list[attacks.AttackReport]:
    """One report for each spec; an image broken at one radius is broken at all larger ones."""
    reports: list[attacks.AttackReport] = []
    for spec in specs:
        if len(specs) > 1:
            terminal.note(f"epsilon {spec.epsilon:.4g}")
        report = evaluation.evaluate(
            net.apply, net.variables, images, labels, spec,
            batch_size=batch_size, mesh=mesh, callbacks=_callbacks(terminal),
            known=reports[-1] if reports else None,
            state_file=_state_file(options, net, spec, len(images)),
        )  # fmt: skip
        reports.append(report)
    return reports


def _state_file(
    options: Options, net: network.Network, spec: AttackSpec, images: int
) -> Path | None:
    """Where an evaluation that is interrupted goes on from: beside the checkpoint, if possible.

    A file for each network, since a run's newest is another one as training goes on.
    """
    folder = Path(options.checkpoint)
    if spec.name == "none" or not os.access(folder, os.W_OK):
        return None
    facts = [spec.describe(), options.dataset, options.epsilons, images, *_split(options).values()]
    what = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return folder / f"evaluation-{what}-{checkpoint.digest(net.variables)[:6]}.npz"


def _corrupted(
    options: Options,
    net: network.Network,
    images: np.ndarray,
    labels: np.ndarray,
    mesh: Mesh,
    batch_size: int,
    terminal: Terminal,
) -> dict[str, list[float]]:
    """Corruption -> accuracy at severities 1 to 5."""
    from irp_jax.data import corruptions

    apply = Partial(net.apply, jax.device_put(net.variables, parallel.replicated(mesh)))
    batch_size = min(batch_size, mesh.size * math.ceil(len(images) / mesh.size))
    found: dict[str, list[float]] = {}
    terminal.attacking("corruptions", len(images))
    for done, name in enumerate(corruptions.CORRUPTIONS):
        found[name] = []
        for severity in corruptions.SEVERITIES:
            changed = corruptions.corrupt(images, name, severity, seed=options.seed)
            pixels = changed.astype(np.float32) / np.float32(255)
            logits = attacks.predict(apply, pixels, batch_size=batch_size, mesh=mesh)
            found[name].append(float((logits.argmax(-1) == labels).mean()))
        terminal.evaluating(done + 1, len(corruptions.CORRUPTIONS), len(images))
    return found


def _accuracies(spec: AttackSpec, report: attacks.AttackReport) -> dict[str, float]:
    """Every attack's accuracy by its name; for a list of them also the whole under its own."""
    if spec.name == "none":
        return {}
    return {**report.accuracy, spec.name: report.robust}


def _save_adversarial(
    path: Path,
    net: network.Network,
    images: np.ndarray,
    labels: np.ndarray,
    report: attacks.AttackReport,
    mesh: Mesh,
) -> tuple[int, Path | None]:
    """Writes PATH.npz, and PATH.png with some adversarial examples.

    Returns:
        How many images the network now sees otherwise than the report has it, and the picture; None
        where no attack succeeded.
    """
    chosen = np.flatnonzero((report.broken_by != "") & (report.broken_by != "natural"))[:8]
    predict = functools.partial(
        attacks.predict, Partial(net.apply, net.variables), batch_size=mesh.size * 64, mesh=mesh
    )
    guess = predict(report.adversarial).argmax(-1)
    arrays = {
        "images": report.adversarial,
        "labels": labels,
        "predictions": guess,
        "is_robust": report.is_robust,
        "broken_by": report.broken_by,
    }
    files.write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # one of an earlier command shows other images
    if len(chosen):
        from irp_jax.report import plots

        names = net.class_names
        natural = predict(np.asarray(to_float(jnp.asarray(images[chosen])))).argmax(-1)
        plots.adversarial_picture(
            images[chosen] / 255,
            report.adversarial[chosen],
            [names[k] for k in natural],
            [names[k] for k in guess[chosen]],
            picture,
        )
    apart = int(((guess == labels) != report.is_robust).sum())
    return apart, picture if len(chosen) else None


if __name__ == "__main__":
    main(evaluate)
