"""bin/evaluate: measures the accuracy of a trained network under attack."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from irp_jax import attacks, checkpoint, evaluation, files, hosts, loading, machine, parallel
from irp_jax.attacks import AttackName, AttackSpec, Norm
from irp_jax.cli.common import ABOUT_HOSTS, join, main, publishable, take_hosts
from irp_jax.cli.flags import parse
from irp_jax.config import EVALUATED_ON, fraction
from irp_jax.errors import UserError, extra, unknown
from irp_jax.inference.images import images_of
from irp_jax.inference.record import scheme_of
from irp_jax.network import Network
from irp_jax.report.console.terminal import (
    Terminal,
    attack_table,
    corruption_table,
    curve_table,
    result_table,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a trained network on test images of its data set, which it was not trained on."""

    checkpoint: str
    """The workdir of a run (such as runs/<name>), one checkpoint in it, a saved network, or
    hf-hub:OWNER/NAME."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: the saved model or function."""
    attack: AttackName = "pgd"
    """autoattack, pgd, pgd-last, fgsm, pgd-margin, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square or
    none. With pgd, an image is broken if any iterate is misclassified, and the accuracy at the last
    iterate is measured too. With pgd-last, only the last iterate counts."""
    version: str = "standard"
    """Version of autoattack: standard, plus or rand."""
    norm: Norm = "linf"
    """Norm of the perturbation: linf, l2 or l1."""
    epsilon: float | None = None
    """Radius for pixels in [0, 1], e.g. 8/255. Default: the radius of training."""
    epsilons: str | None = None
    """Several radii for a robustness curve, for instance 0,1/255,2/255,4/255,8/255."""
    steps: int | None = None
    """Steps of the attack from each start. Default: the usual number of the attack, 10 for pgd."""
    step_size: float | None = None
    """Step size of pgd, pgd-last and pgd-margin. Default: epsilon / 4."""
    restarts: int = 1
    """Random starts for each image. One that succeeds is enough to break the image."""
    split: Literal["test", "validation"] = "test"
    """Images to attack: test, or validation for the training images that the run held out."""
    images: int | None = None
    """Attack only this many images, the first of the split."""
    batch_size: int | None = None
    """Images attacked at once. Default: up to 512 per device; on a CPU what fits a core's cache."""
    dataset: str | None = None
    """Another data set or PATH.npz to test on. Default: the data set of the run."""
    data_dir: str | None = None
    """Folder of the data set. Default: the folder that the run used."""
    seed: int = 0
    """Seed of all random numbers."""
    corruptions: bool = False
    """Also measure accuracy under the 15 common corruptions at 5 severities each."""
    save_adversarial: str | None = None
    """Write the adversarial images to this .npz file, and a picture of some next to it. bin/report
    compares the files of two networks."""
    out: str | None = None
    """Also write the results to this JSON file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was attacked, and what was found.

    Attributes:
        network: the network.
        dataset: name of the data set.
        images, labels: the images of it that were attacked.
        radii: ascending; radius 0 means the natural images.
        specs: the attack at each positive radius.
        reports: what each attack found.
        last: what PGD finds if only the last iterate counts; None for other attacks and curves.
        corruptions: corruption -> accuracy at each severity; None if not measured.
        seconds: wall time of the attacks.
        mesh: devices that were used.
    """

    network: Network
    dataset: str
    images: np.ndarray
    labels: np.ndarray
    radii: list[float]
    specs: list[AttackSpec]
    reports: list[attacks.AttackReport]
    last: attacks.AttackReport | None
    corruptions: dict[str, list[float]] | None
    seconds: float
    mesh: Mesh


def evaluate(arguments: list[str]) -> None:
    """Attacks a network and prints a table. `--out` writes the results to a file."""
    joined, rest = take_hosts(arguments)
    options = parse(Options, rest, "bin/evaluate", about=f"{Options.__doc__}\n\n{ABOUT_HOSTS}")
    join(joined)
    _check(options)
    terminal = Terminal(quiet=not hosts.is_first())
    net = loading.load(options.checkpoint, terminal.note, model=options.model)
    try:
        found = _measure(options, net, terminal)
    finally:
        terminal.close()
    results = _results(options, found, publishable("bin/evaluate", arguments))
    if options.out is not None:
        files.write_json(Path(options.out), results)
    if options.save_adversarial is not None:
        _save_adversarial(Path(options.save_adversarial), found, results["attack"], terminal)
    _remove_states(options, found)
    _show(options, results, terminal)


def _check(options: Options) -> None:
    """Reports what is wrong with the options or cannot be written, before anything is loaded."""
    if options.split not in EVALUATED_ON:
        raise unknown("split", options.split, EVALUATED_ON)
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    saving = options.save_adversarial
    if saving is not None:
        if Path(saving).suffix != ".npz":
            raise UserError(f"--save-adversarial must name an .npz file, got {saving}")
        with extra("plots"):  # a missing extra is reported before the attack
            import irp_jax.report.adversarial  # noqa: F401
    for place in (options.out, saving):
        if place is not None:
            files.check_place(Path(place))


def _measure(options: Options, net: Network, terminal: Terminal) -> Measured:
    """Runs the attacks that the options ask for."""
    radii = _radii(options, net.epsilon)
    attacked = [radius for radius in radii if radius > 0] if options.epsilons else radii
    specs = [spec_of(options, radius) for radius in attacked]
    dataset = options.dataset or net.record["trained"]["dataset"]
    images, labels = images_of(
        net, options.dataset, data_dir=options.data_dir, split=options.split, warn=terminal.warn
    )  # fmt: skip
    images, labels = images[: options.images], labels[: options.images]
    if options.corruptions:  # too small images are refused before the attack
        with extra("data"):
            from irp_jax.data import corruptions
        corruptions.corrupt(images[:1], corruptions.CORRUPTIONS[0], 1)
    if hosts.is_several():
        files_of = [checkpoint.digest(net.variables), checkpoint.digest([images, labels])]
        hosts.check_same("weights or images", files_of)
    mesh, batch_size = _devices(options, images)
    subject = (net.apply, net.variables, images, labels)
    how: dict[str, Any] = {
        "batch_size": batch_size, "mesh": mesh, "callbacks": _callbacks(terminal),
    }  # fmt: skip
    began, last, table = time.perf_counter(), None, None
    reports = evaluation.curve(
        *subject, specs, begin=lambda spec: _announce(spec, specs, terminal),
        state_file=functools.partial(state_file_of, options, net, images=len(images)), **how,
    )  # fmt: skip
    if options.attack == "pgd" and options.epsilons is None:
        last = evaluation.last_iterate(*subject, specs[-1], reports[-1], **how)
    seconds = time.perf_counter() - began
    if options.corruptions:
        table = evaluation.corrupted(*subject, seed=options.seed, **how)
    return Measured(
        network=net, dataset=dataset, images=images, labels=labels, radii=radii, specs=specs,
        reports=reports, last=last, corruptions=table, seconds=seconds, mesh=mesh,
    )  # fmt: skip


def _results(options: Options, found: Measured, command: str) -> dict[str, Any]:
    """Returns what `--out` writes."""
    net, spec, report = found.network, found.specs[-1], found.reports[-1]
    results: dict[str, Any] = {
        "model": net.name,
        "dataset": found.dataset,
        "method": net.record["trained"]["method"],
        "seed": net.record["trained"]["seed"],
        "cost": net.cost,
        "accuracy": {"natural": report.natural},
        "attack": spec.describe() | {"images": len(found.images)} | _split(options),
        "epochs": net.epoch,
        "network_sha256": checkpoint.digest(net.variables),
        "wall_time_s": round(found.seconds, 1),
        "environment": machine.describe(),
        "command": command,
        "commit": files.commit(),
    }
    if net.quantization is not None:
        results["quantization"] = scheme_of(net.record)
    if options.epsilons is not None:
        pairs = zip(found.specs, found.reports, strict=True)
        robust = {each.epsilon: one.robust for each, one in pairs}
        results["curve"] = {
            "epsilon": found.radii,
            "accuracy": [robust.get(radius, report.natural) for radius in found.radii],
        }
    else:
        results["accuracy"] |= _accuracies(spec, report)
        if found.last is not None:
            results["accuracy"]["pgd-last"] = found.last.robust
        results["seconds"] = {k: round(v, 1) for k, v in report.seconds.items()}
    if found.corruptions is not None:
        results["corruptions"] = found.corruptions
        results["accuracy"]["corrupted"] = float(np.mean(list(found.corruptions.values())))
    warnings = {line for one in found.reports for line in one.warnings}
    return results | {"warnings": sorted(warnings)}


def _remove_states(options: Options, found: Measured) -> None:
    """Removes the states of interrupted attacks, now that all results are written."""
    for spec in found.specs:
        state_file = state_file_of(options, found.network, spec, images=len(found.images))
        if state_file is not None and hosts.is_first():
            same, _, _ = state_file.name.rpartition("-")
            for other in state_file.parent.glob(f"{same}-*.npz"):  # also of earlier networks
                other.unlink(missing_ok=True)


def _show(options: Options, results: dict[str, Any], terminal: Terminal) -> None:
    if "curve" in results:
        terminal.console.print(curve_table(results))
    elif options.attack == "autoattack":
        terminal.console.print(attack_table(results))
    if "corruptions" in results:
        terminal.console.print(corruption_table(results))
    terminal.console.print(result_table(results))


def _announce(spec: AttackSpec, specs: list[AttackSpec], terminal: Terminal) -> None:
    if len(specs) > 1:
        terminal.note(f"epsilon {spec.epsilon:.4g}")


def _split(options: Options) -> dict[str, str]:
    """Returns {"split": name} if the images are not test images, else nothing."""
    return {} if options.split == "test" else {"split": options.split}


def _radii(options: Options, usual: float) -> list[float]:
    """Returns the radii to attack with, ascending. Radius 0 means the natural images."""
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


def spec_of(options: Options, epsilon: float) -> AttackSpec:
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


def _devices(options: Options, images: np.ndarray) -> tuple[Mesh, int]:
    """Returns the mesh of the devices used, and how many images they attack at once."""
    if options.batch_size is not None:
        return parallel.mesh(parallel.usable_devices(options.batch_size)), options.batch_size
    mesh = parallel.mesh(parallel.busy_devices(len(images)))
    return mesh, parallel.attacked_at_once(mesh, *images.shape[1:3])


def _callbacks(terminal: Terminal) -> attacks.Callbacks:
    return attacks.Callbacks(
        begin=terminal.attacking, progress=terminal.evaluating, warn=terminal.warn
    )


def state_file_of(options: Options, net: Network, spec: AttackSpec, *, images: int) -> Path | None:
    """Returns the file with the state of an interrupted attack, in the folder of the checkpoint.

    Each network has its own file, because the newest network of a run changes during training.
    Returns None if there is no attack or the folder is not writable.
    """
    folder = Path(options.checkpoint)
    if spec.name == "none" or not hosts.agreed(os.access(folder, os.W_OK)):
        return None
    facts = [spec.describe(), options.dataset, options.epsilons, images, *_split(options).values()]
    what = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return folder / f"evaluation-{what}-{checkpoint.digest(net.variables)[:6]}.npz"


def _accuracies(spec: AttackSpec, report: attacks.AttackReport) -> dict[str, float]:
    """Returns name of attack -> accuracy. For a list of attacks the name of the list is added."""
    if spec.name == "none":
        return {}
    return {**report.accuracy, spec.name: report.robust}


def _save_adversarial(
    path: Path, found: Measured, attack: dict[str, Any], terminal: Terminal
) -> None:
    from irp_jax.report import adversarial

    picture, apart = adversarial.save(
        path, found.network, found.images, found.labels, found.reports[-1], attack, found.mesh
    )
    drawn = "" if picture is None else f", some drawn in {picture}"
    terminal.note(f"adversarial images written to {path}{drawn}")
    if apart:
        terminal.warn(f"the prediction for {apart} of them differs in batches of another size")


if __name__ == "__main__":
    main(evaluate)
