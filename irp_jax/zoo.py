"""A trained network to hand on: its checkpoint without what training needed, and a model card."""

import json
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

from irp_jax import checkpoint, files
from irp_jax.config import radius
from irp_jax.errors import UserError
from irp_jax.report.tables import defense, recipe


def publish(run: Path, results: Path, into: Path, log: checkpoint.Log) -> None:
    """Writes `into`/checkpoints and `into`/README.md; `bin/evaluate --checkpoint=INTO` reads them.

    Args:
        run: a finished run's workdir.
        results: JSON of the run: its results.json, or what bin/sweep collected of it.
        into: the folder to make.
        log: told of damaged checkpoints that are passed over.

    Raises:
        UserError: the run has no checkpoint or is not finished, its figures are not of test images,
            the results are not of this run, or `into` exists.
    """
    saved = checkpoint.restore(run / "checkpoints", None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {run}: give a run's workdir, such as runs/<name>")
    found = files.read_json(results)
    if found is None:
        raise UserError(
            f"there is no {results}: give the results.json of a finished run, or what bin/sweep "
            f"collected of it"
        )
    needed = {"config", "defense", "passes_per_image", "epochs", "wall_time_s"}
    if not isinstance(found, dict) or not needed <= set(found):
        raise UserError(f"{results} is no results of a run of this version: give its results.json")
    record = saved.record
    if found["config"] != record["identity"] or saved.epoch != found["epochs"]:
        raise UserError(f"{results} is not of the finished run in {run}")
    if record["config"].get("evaluate_on") == "validation":
        raise UserError(
            f"{results} is of held-out images, and a card gives figures of test images: train with "
            f"--evaluate-on=test"
        )
    if found["wall_time_s"] != (files.read_json(run / "results.json") or {}).get("wall_time_s"):
        raise UserError(f"{results} is of another training than the one in {run}")
    if into.exists():
        raise UserError(f"{into} exists: remove it first, or choose another name")
    files.check_place(into)
    # Places on the machine that trained are nobody else's business, and this is no run to resume.
    dataset = _public(record["config"]["dataset"])
    config = {**record["config"], "workdir": None, "data_dir": None, "dataset": dataset}
    record = {**record, "config": config, "identity": None}
    unfinished = into.with_name(f".{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        checkpoint.save(unfinished / "checkpoints", saved.epoch, saved.network, None, record)
        for mark in unfinished.rglob("commit_success.txt"):  # orbax writes there where it was
            mark.unlink()
        card = _card(found, into, unfinished, record["class_names"])
        files.write_whole(unfinished / "README.md", lambda file: file.write(card.encode()))
        unfinished.rename(into)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _public(dataset: str) -> str:
    """A data set's name; of a user's file, the file's name."""
    return Path(dataset).name if dataset.endswith(".npz") else dataset


def _card(found: dict[str, Any], into: Path, folder: Path, class_names: list[str]) -> str:
    """The model card, Markdown.

    Args:
        found: results of the run.
        into: where readers find the network.
        folder: where it lies now.
        class_names: one per logit.
    """
    config, cost = {**found["config"], "dataset": _public(found["dataset"])}, found["cost"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    place = f"--checkpoint={into.name if into.is_absolute() else into}"
    plain = ["bin/evaluate", place]
    if config["dataset"].endswith(".npz"):
        plain.append(f"--dataset={config['dataset']}")
    tested, accuracy = found["attack"]["images"], found["accuracy"]
    measured = [
        ("no attack", accuracy["natural"], tested, [*plain, "--attack=none"]),
        ("PGD-10", accuracy["pgd"], tested, plain),
    ]
    for name, other in found.get("attacks", {}).items():
        words = [w for w in shlex.split(other["command"])[1:] if not w.startswith("--checkpoint")]
        measured.append((name, accuracy[name], other["attack"]["images"], [*plain, *words]))
    rows = "\n".join(
        f"| {name} | {100 * share:.2f} | {images:,} | `{shlex.join(command)}` |"
        for name, share, images, command in measured
    )
    what = (
        f"{found['model']} for {config['dataset']}, cut to {cost['macs_ratio']:.1%} of its "
        f"operations and {cost['params_ratio']:.1%} of its parameters (method {found['method']}) "
        f"and trained with the defence {defense(found)}: {cost['macs']:,} multiply-accumulates "
        f"per image, {cost['params']:,} parameters, {size / 1000:.0f} kB as it lies here. It tells "
        f"apart {', '.join(class_names)}."
    )
    attacks = (
        f"Attacks are L-inf of radius {radius(config['epsilon'])}. PGD starts at random and steps "
        f"by a quarter of the radius; an image counts as lost if any iterate is misclassified."
    )
    if any(count < tested for _, _, count, _ in measured):
        attacks += (
            " Figures of fewer test images are of the first ones: do not compare them with figures "
            "of all."
        )
    training = (
        f"{found['epochs']} epochs ({recipe(found)}), {found['passes_per_image']:g} forward and "
        f"backward passes per training image, {_minutes(found['wall_time_s'])} on "
        f"{_hardware(found)}, commit {found['commit'] or 'unknown'}."
    )
    limits = (
        "Robust within this radius and norm only, and only as far as the table says: larger "
        "perturbations, other norms, rotations, patches and changes of light were not trained "
        f"against. It knows images of {config['dataset']} alone. Research: not for decisions that "
        "matter."
    )
    parts = [
        f"# {into.name}",
        _filled(what),
        f"| under | accuracy % | test images | regenerate with |\n|---|---|---|---|\n{rows}",
        _filled(attacks),
        f"## Training\n\n    {found['command']}\n\n{_filled(training)}",
        f"## Limits\n\n{_filled(limits)}",
        f"## Settings\n\n```json\n{json.dumps(config, indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _minutes(seconds: float) -> str:
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s' if count > 1 else ''}"


def _hardware(found: dict[str, Any]) -> str:
    facts = found["environment"]
    kind = facts["processor"] if facts["platform"] == "cpu" else facts["device"]
    return f"{facts['device_count']} x {kind}"
