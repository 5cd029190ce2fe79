"""A trained network to hand on: its checkpoint without what training needed, and a model card."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from irp_jax import checkpoint, files, network
from irp_jax.config import LOCAL
from irp_jax.errors import UserError


def publish(run: Path, results: Path, into: Path, log: checkpoint.Log) -> None:
    """Writes `into`/checkpoints and `into`/README.md; `bin/evaluate --checkpoint=INTO` reads them.

    Args:
        run: a finished run's workdir.
        results: JSON of the run: its results.json, or what bin/sweep collected of it.
        into: the folder to make.
        log: told of damaged checkpoints that are passed over.

    Raises:
        UserError: the run has no checkpoint or is not finished, the results are not of this run,
            or `into` exists.
    """
    saved = checkpoint.restore(run / "checkpoints", None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {run}: give a run's workdir, such as runs/<name>")
    found = files.read_json(results)
    if found is None or "config" not in found:
        raise UserError(f"{results} is no run's results: give its results.json")
    record = saved.record
    if found["config"] != record["identity"] or saved.epoch != found["epochs"]:
        raise UserError(f"{results} is not of the finished run in {run}")
    if into.exists():
        raise UserError(f"{into} exists: remove it first, or choose another name")
    # Places on the machine that trained are nobody else's business.
    anywhere = {**record["config"], **dict.fromkeys(("workdir", "data_dir"))}
    record = {**record, "config": anywhere}
    checkpoint.save(into / "checkpoints", saved.epoch, saved.network, None, record)
    net = network.load(str(into), log)
    size = sum(p.stat().st_size for p in (into / "checkpoints").rglob("*") if p.is_file())
    card = _card(found, into, results, size, net.class_names)
    files.write_whole(into / "README.md", lambda file: file.write(card.encode()))


def _card(
    found: dict[str, Any], into: Path, results: Path, size: int, class_names: tuple[str, ...]
) -> str:
    config, cost = found["config"], found["cost"]
    radius = f"{round(config['epsilon'] * 255, 2):g}/255"
    plain = f"bin/evaluate --checkpoint={into}"
    tested, accuracy = found["attack"]["images"], found["accuracy"]
    measured = [
        ("no attack", accuracy["natural"], tested, f"{plain} --attack=none"),
        ("PGD-10", accuracy["pgd"], tested, plain),
    ]
    for name, other in found.get("attacks", {}).items():
        command = re.sub(r"--checkpoint=\S+", f"--checkpoint={into}", other["command"])
        measured.append((name, accuracy[name], other["attack"]["images"], command))
    rows = "\n".join(
        f"| {name} | {100 * share:.2f} | {images:,} | `{command}` |"
        for name, share, images, command in measured
    )
    what = (
        f"{found['model']} for {found['dataset']}, cut to {cost['macs_ratio']:.1%} of its "
        f"operations and {cost['params_ratio']:.1%} of its parameters while it was trained to "
        f"withstand attacks: {cost['macs']:,} multiply-accumulates per image, {cost['params']:,} "
        f"parameters, {size / 1000:.0f} kB as it lies here. It tells apart "
        f"{', '.join(class_names)}."
    )
    attacks = (
        f"Attacks are L-inf of radius {radius}. PGD starts at random and steps by a quarter of the "
        "radius; an image counts as lost if any iterate is misclassified."
    )
    training = (
        f"{found['epochs']} epochs, {found['passes_per_image']:g} forward and backward passes per "
        f"training image, {found['wall_time_s'] / 60:.0f} minutes on {_hardware(found)}, commit "
        f"{(found['commit'] or 'unknown')[:12]}. All figures: {results.name}."
    )
    limits = (
        "Robust within this radius and norm only, and only as far as the table says: larger "
        "perturbations, other norms, rotations, patches and changes of light were not trained "
        f"against. It knows images of {found['dataset']} alone. Research: not for decisions that "
        "matter."
    )
    settings = {key: value for key, value in config.items() if key not in LOCAL}
    parts = [
        f"# {into.name}",
        _filled(what),
        f"| under | accuracy % | test images | regenerate with |\n|---|---|---|---|\n{rows}",
        _filled(attacks),
        f"## Training\n\n    {found['command']}\n\n{_filled(training)}",
        f"## Limits\n\n{_filled(limits)}",
        f"## Settings\n\n```json\n{json.dumps(settings, indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100)


def _hardware(found: dict[str, Any]) -> str:
    facts = found["environment"]
    kind = facts["processor"] if facts["platform"] == "cpu" else facts["device"]
    return f"{facts['device_count']} x {kind}"
