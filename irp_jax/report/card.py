"""The model card of a published network, with the metadata that the Hugging Face hub reads."""

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from irp_jax.config import radius
from irp_jax.report.tables import Results, defense, network, recipe


class Measured(NamedTuple):
    """One accuracy and how to measure it again.

    Attributes:
        attack: name of the attack.
        accuracy: fraction of the images.
        images: number of test images.
        command: words of the command.
    """

    attack: str
    accuracy: float
    images: int
    command: list[str]


def model_card(found: Results, into: Path, size: int, class_names: Sequence[str]) -> str:
    """Returns a model card in Markdown: data, recipe, accuracies with their commands, and limits.

    It begins with metadata in YAML.

    Args:
        found: the results of the run.
        into: the folder in which readers find the network.
        size: size of the weights in bytes.
        class_names: one name per logit.
    """
    config, cost = found["config"], found["cost"]
    place = into.name if into.is_absolute() else into.as_posix()
    measured = _measured(found, place)
    tested = found["attack"]["images"]
    rows = "\n".join(
        f"| {each.attack} | {100 * each.accuracy:.2f} | {each.images:,} "
        f"| `{shlex.join(each.command)}` |"
        for each in measured
    )
    what = (
        f"{network(found)} for {config['dataset']}, pruned to {cost['macs_ratio']:.1%} of its "
        f"operations and {cost['params_ratio']:.1%} of its parameters (method {found['method']}) "
        f"and trained with the defense {defense(found)}: {cost['macs']:,} multiply-accumulates "
        f"per image, {cost['params']:,} parameters, {size / 1000:.0f} kB of weights. Its classes "
        f"are {', '.join(class_names)}."
    )
    if "quantization" in found:
        what += " It was trained and measured in 8-bit integers, which JAX emulates in float32."
    attacks = (
        f"The attacks use the L-inf norm and radius {radius(config['epsilon'])}. PGD starts at a "
        f"random point and uses a step size of a quarter of the radius. An image counts as broken "
        f"if any iterate is misclassified."
    )
    if any(each.attack.endswith("last iterate") for each in measured):
        attacks += (
            " In rows called 'last iterate' it counts as broken only if the last iterate is "
            "misclassified, as in most published code."
        )
    if any(each.images < tested for each in measured):
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
    use = (
        "Images are (N, H, W, C), uint8 or float in [0, 1]. On the Hugging Face hub the name is "
        '"hf-hub:OWNER/NAME". `model.onnx` and `model.tflite`, if they are here, are the same '
        "network for onnxruntime and LiteRT."
    )
    code = f'    import irp_jax\n\n    network = irp_jax.load_model("{place}")'
    code += "\n    logits = network(images)"
    parts = [
        f"{metadata(found, into.name, measured)}\n# {into.name}",
        _filled(what),
        f"| attack | accuracy % | test images | command |\n|---|---|---|---|\n{rows}",
        _filled(attacks),
        f"## Use\n\n{code}\n\n{_filled(use)}",
        f"## Training\n\n    {found['command']}\n\n{_filled(training)}",
        f"## Limits\n\n{_filled(limits)}",
        f"## Settings\n\n```json\n{json.dumps(config, indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _measured(found: Results, place: str) -> list[Measured]:
    """Returns the accuracies of a run in the order of the card."""
    plain = ["bin/evaluate", f"--checkpoint={place}"]
    if found["config"]["dataset"].endswith(".npz"):
        plain.append(f"--dataset={found['config']['dataset']}")
    tested, accuracy = found["attack"]["images"], found["accuracy"]
    measured = [
        Measured("no attack", accuracy["natural"], tested, [*plain, "--attack=none"]),
        Measured("PGD-10", accuracy["pgd"], tested, plain),
    ]
    if "pgd-last" in accuracy:
        last = [*plain, "--attack=pgd-last"]
        measured.append(Measured("PGD-10, last iterate", accuracy["pgd-last"], tested, last))
    for name, other in found.get("attacks", {}).items():
        words = [w for w in shlex.split(other["command"])[1:] if not w.startswith("--checkpoint")]
        count = other["attack"]["images"]
        measured.append(Measured(name, accuracy[name], count, [*plain, *words]))
        if f"{name}-last" in accuracy:
            words = [word.replace("--attack=pgd", "--attack=pgd-last") for word in words]
            share = accuracy[f"{name}-last"]
            measured.append(Measured(f"{name}, last iterate", share, count, [*plain, *words]))
    return measured


def metadata(found: Results, name: str, measured: Sequence[Measured]) -> str:
    """Returns the head of a model card in YAML, between two lines of dashes.

    `model-index` holds the accuracies, as fractions.

    Args:
        found: the results of the run.
        name: the name of the network.
        measured: its accuracies.
    """
    data = json.dumps(found["config"]["dataset"])  # a JSON text is a YAML text
    tested = found["attack"]["images"]
    lines = [
        "---",
        "library_name: irp_jax",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, pruning, jax, onnx]",
        "model-index:",
        f"- name: {json.dumps(name)}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      type: {data}",
        f"      name: {data}",
        "      split: test",
        "    metrics:",
    ]
    for each in measured:
        few = f", first {each.images:,} images" if each.images < tested else ""
        lines += [
            "    - type: accuracy",
            f"      name: {json.dumps(each.attack + few)}",
            f"      value: {each.accuracy:.4f}",
        ]
    return "\n".join([*lines, "---"]) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _minutes(seconds: float) -> str:
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s' if count > 1 else ''}"


def _hardware(found: Results) -> str:
    facts = found["environment"]
    kind = facts["processor"] if facts["platform"] == "cpu" else facts["device"]
    return f"{facts['device_count']} x {kind}"
