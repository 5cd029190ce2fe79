"""The model card of a published network."""

import json
import shlex
import textwrap
from pathlib import Path

from irp_jax.config import radius
from irp_jax.report.tables import Results, defense, network, recipe


def model_card(found: Results, into: Path, size: int, class_names: list[str]) -> str:
    """Returns a model card in Markdown: data, recipe, accuracies with their commands, and limits.

    Args:
        found: the results of the run.
        into: the folder in which readers find the network.
        size: total size of the network's files in bytes.
        class_names: one name per logit.
    """
    config, cost = found["config"], found["cost"]
    place = f"--checkpoint={into.name if into.is_absolute() else into}"
    plain = ["bin/evaluate", place]
    if config["dataset"].endswith(".npz"):
        plain.append(f"--dataset={config['dataset']}")
    tested, accuracy = found["attack"]["images"], found["accuracy"]
    measured = [
        ("no attack", accuracy["natural"], tested, [*plain, "--attack=none"]),
        ("PGD-10", accuracy["pgd"], tested, plain),
    ]
    if "pgd-last" in accuracy:
        last = [*plain, "--attack=pgd-last"]
        measured.append(("PGD-10, last iterate", accuracy["pgd-last"], tested, last))
    for name, other in found.get("attacks", {}).items():
        words = [w for w in shlex.split(other["command"])[1:] if not w.startswith("--checkpoint")]
        count = other["attack"]["images"]
        measured.append((name, accuracy[name], count, [*plain, *words]))
        if f"{name}-last" in accuracy:
            words = [word.replace("--attack=pgd", "--attack=pgd-last") for word in words]
            share = accuracy[f"{name}-last"]
            measured.append((f"{name}, last iterate", share, count, [*plain, *words]))
    rows = "\n".join(
        f"| {name} | {100 * share:.2f} | {images:,} | `{shlex.join(command)}` |"
        for name, share, images, command in measured
    )
    what = (
        f"{network(found)} for {config['dataset']}, pruned to {cost['macs_ratio']:.1%} of its "
        f"operations and {cost['params_ratio']:.1%} of its parameters (method {found['method']}) "
        f"and trained with the defense {defense(found)}: {cost['macs']:,} multiply-accumulates "
        f"per image, {cost['params']:,} parameters, {size / 1000:.0f} kB on disk. Its classes are "
        f"{', '.join(class_names)}."
    )
    attacks = (
        f"The attacks use the L-inf norm and radius {radius(config['epsilon'])}. PGD starts at a "
        f"random point and uses a step size of a quarter of the radius. An image counts as broken "
        f"if any iterate is misclassified."
    )
    if any(name.endswith("last iterate") for name, *_ in measured):
        attacks += (
            " In rows called 'last iterate' it counts as broken only if the last iterate is "
            "misclassified, as in most published code."
        )
    if any(count < tested for _, _, count, _ in measured):
        attacks += (
            " Figures on fewer test images use the first images of the test set. Do not compare "
            "them with figures on all test images."
        )
    training = (
        f"{found['epochs']} epochs ({recipe(found)}), {found['passes_per_image']:g} forward and "
        f"backward passes per training image, {_minutes(found['wall_time_s'])} on "
        f"{_hardware(found)}, commit {found['commit'] or 'unknown'}. The command is for that "
        f"commit. The settings below have the names of the version that wrote this card."
    )
    limits = (
        "The network is robust only within this radius and norm, and only as far as the table "
        "shows. It was not trained against larger perturbations, other norms, rotations, patches "
        f"or changes of light. It was trained on images of {config['dataset']} alone. It is for "
        "research, not for decisions that matter."
    )
    parts = [
        f"# {into.name}",
        _filled(what),
        f"| attack | accuracy % | test images | command |\n|---|---|---|---|\n{rows}",
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


def _hardware(found: Results) -> str:
    facts = found["environment"]
    kind = facts["processor"] if facts["platform"] == "cpu" else facts["device"]
    return f"{facts['device_count']} x {kind}"
