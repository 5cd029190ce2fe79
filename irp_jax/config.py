"""What a training run is: one frozen dataclass, checked before anything is loaded or written."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from irp_jax import attacks
from irp_jax.data import check_name
from irp_jax.errors import UserError, unknown
from irp_jax.models import MODELS

BASELINES = {"width": 1, "magnitude": 2, "admm": 3}
"""Methods that learn no masks but prune once -> stages of training, each at least an epoch."""

METHODS = ("priced", "paper", *BASELINES)
COSTS = ("macs", "params")
DEFENSES = (
    "none", "fgsm", "fgsm-rs", "n-fgsm", "fgsm-consistency", "fgsm-mep", "gradalign", "pgd",
    "trades",
)  # fmt: skip
SCHEDULES = ("cyclic", "cosine", "piecewise")
REGULARITIES = ("channel", "weight")
EVALUATED_ON = ("test", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train, prune and harden a network in one run."""

    model: str = "resnet20"
    """resnet8/20/32/44/56/110, resnet18, vgg16 or wrn28_4."""
    budget: str = "0.16"
    """What may be left: a fraction of the dense cost (0.16) or an absolute amount (0.04M, 900k)."""
    cost: str = "macs"
    """What the budget counts: macs (multiply-accumulates per image) or params."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn_cropped, mnist, fashion_mnist, digits (no download), or PATH.npz."""
    data_dir: str | None = None
    """Where a prepared set or the official archive lies, or shall lie."""
    method: str = "priced"
    """How the network is made small: priced (masks learned, the budget met exactly), paper (masks
    under the constant-b hinge), or a baseline: width (uniformly narrow from the start), magnitude
    (dense, pruned once, fine-tuned), admm (Robust ADMM)."""
    regularity: str = "channel"
    """What is pruned: channel (a small dense network) or weight (a sparse one)."""
    width: float = 1.0
    """Multiplies every channel count of the model."""
    epsilon: float = 8 / 255
    """L-inf radius to be robust against, in pixels of [0, 1]; may be written 8/255."""
    epsilon_warmup: float = 0.1
    """Fraction of training (magnitude, admm: of the first stage) over which the radius trained
    against grows linearly to --epsilon; 0 is off."""
    defense: str = "n-fgsm"
    """What makes the network robust. One gradient step an image: n-fgsm, fgsm-rs (as published),
    fgsm, fgsm-consistency, fgsm-mep (remembers perturbations), gradalign. Many: pgd, trades. Or
    none."""
    guard: bool = True
    """Whether a network found to overfit its own attack goes back to before and on with a stronger
    defence."""
    attack_steps: int = 10
    """Gradient steps of the attack in training (pgd, trades)."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all devices."""
    learning_rate: float = 0.1
    """Peak of the schedule."""
    schedule: str = "cosine"
    """How the learning rate moves: cosine (down), cyclic (up and down) or piecewise (two drops)."""
    clip: float = 0.0
    """Longest gradient of all weights together; 0 is off."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which becomes the network; 0 is off."""
    weight_decay: float = 5e-4
    """L2 penalty on the weights."""
    label_smoothing: float = 0.0
    """Probability mass taken from the label, in [0, 1)."""
    cutout: int = 0
    """Side in pixels of a square blackened in each training image; 0 is off."""
    ramp_start: float = 0.05
    """When pruning starts, as a fraction of training (priced)."""
    ramp_stop: float = 0.2
    """When the budget is reached, masks are frozen and the network is slimmed (priced)."""
    hinge_strength: float = 1.0
    """The constant b of the hardware loss (paper)."""
    mask_learning_rate: float = 0.1
    """Learning rate of the mask logits (paper)."""
    pretraining: float = 1 / 3
    """Fraction of training that the dense network gets first (magnitude, admm)."""
    admm_stage: float = 1 / 3
    """Fraction of training that ADMM gets next; the rest is for what it leaves (admm)."""
    admm_rho: float = 1e-3
    """Strength of the pull towards the pruned weights (admm)."""
    admm_updates: int = 10
    """How often the pruned weights are chosen anew during ADMM (admm)."""
    restart_rate: float = 1.0
    """Peak learning rate of the later stages, relative to the first (magnitude, admm)."""
    validation: float = 0.02
    """Fraction of the training images held out."""
    evaluate_on: str = "test"
    """What the final accuracies are measured on: test, or validation, the images held out, while
    settings are being chosen. Part of what a run is: figures on test images take a run of their
    own."""
    train_images: int = 0
    """How many of the rest to learn from, in the classes' proportions; 0 is all."""
    seed: int = 0
    """Of every random choice."""
    workdir: str | None = None
    """Where the run is kept; running the same command again resumes it. Default: runs/<name>."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints, at least; they are taken at the end of an epoch."""


SUITED: dict[str, dict[str, Any]] = {
    "mnist": {"epsilon": 0.3, "epochs": 15},
    "fashion_mnist": {"epsilon": 0.1, "epochs": 20},
    "svhn_cropped": {"learning_rate": 0.05, "epochs": 20},
    "digits": {
        "epsilon": 0.1, "epsilon_warmup": 0.0, "epochs": 60, "validation": 0.1,
        "defense": "fgsm-rs", "schedule": "cyclic", "learning_rate": 0.2,
    },
}  # fmt: skip
"""Settings that suit a data set better than `Config`'s own, which are CIFAR-10's."""


def suited(dataset: str, base: Config | None = None) -> Config:
    """A config for a data set, with the settings that suit it.

    Args:
        dataset: a data set's name or the path of an .npz file.
        base: where everything else is taken from, and whatever differs from `Config()` stays.
    """
    base, usual = base or Config(), Config()
    settings = SUITED.get(dataset, {})
    open_to_change = {k: v for k, v in settings.items() if getattr(base, k) == getattr(usual, k)}
    return dataclasses.replace(base, dataset=dataset, **open_to_change)


def check(config: Config) -> None:
    """Checks every value.

    Raises:
        UserError: names the first value that cannot be meant and what to give instead.
    """
    check_name(config.dataset)
    for kind, value, options in (
        ("model", config.model, MODELS),
        ("method", config.method, METHODS),
        ("cost", config.cost, COSTS),
        ("regularity", config.regularity, REGULARITIES),
        ("defense", config.defense, DEFENSES),
        ("schedule", config.schedule, SCHEDULES),
        ("--evaluate-on", config.evaluate_on, EVALUATED_ON),
    ):
        if value not in options:
            raise unknown(kind, value, options)
    parse_budget(config.budget)
    attacks.linf(config.epsilon)
    if config.seed >= 2**32:
        raise UserError(f"--seed must be below 2^32, got {config.seed}")
    for name, least in (
        ("epochs", BASELINES.get(config.method, 1)),
        ("batch_size", 1),
        ("seed", 0),
        ("cutout", 0),
        ("train_images", 0),
        ("attack_steps", 1),
        ("admm_updates", 1),
    ):
        if getattr(config, name) < least:
            raise UserError(f"{_flag(name)} must be at least {least}, got {getattr(config, name)}")
    for name in (
        "width", "learning_rate", "hinge_strength", "mask_learning_rate", "pretraining",
        "admm_stage", "admm_rho", "restart_rate",
    ):  # fmt: skip
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"{_flag(name)} must be positive, got {getattr(config, name):g}")
    for name in ("label_smoothing", "validation", "ema", "epsilon_warmup"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{_flag(name)} must be in [0, 1), got {getattr(config, name):g}")
    for name in ("weight_decay", "checkpoint_every", "clip"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"{_flag(name)} must be 0 or more, got {getattr(config, name):g}")
    if not 0 <= config.ramp_start < config.ramp_stop < 1:
        raise UserError(
            f"--ramp-start and --ramp-stop must satisfy 0 <= start < stop < 1, got "
            f"{config.ramp_start:g} and {config.ramp_stop:g}"
        )
    if config.method == "magnitude" and config.pretraining >= 1:
        raise UserError(
            f"--pretraining must leave some of training to the pruned network: it must be below 1, "
            f"got {config.pretraining:g}"
        )
    if config.method == "admm" and config.pretraining + config.admm_stage >= 1:
        raise UserError(
            f"--pretraining and --admm-stage must leave some of training to the pruned network: "
            f"together below 1, got {config.pretraining + config.admm_stage:g}"
        )
    if config.method == "width" and config.regularity != "channel":
        raise UserError(
            f"--method=width makes layers narrower: give --regularity=channel, "
            f"not {config.regularity}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flags(config: Config, default: Config | None = None) -> list[str]:
    """What to type after bin/train for this config: the fields that differ from a default's."""
    given = []
    for name, value in dataclasses.asdict(config).items():
        if default is not None and name != "dataset" and value == getattr(default, name):
            continue
        if isinstance(value, bool):
            given.append(_flag(name) if value else _flag(f"no_{name}"))
        elif value is not None:
            given.append(f"{_flag(name)}={value}")
    return given


def parse_budget(text: str | float) -> tuple[float, bool]:
    """Reads a budget.

    Args:
        text: a fraction in (0, 1], or a positive number with a suffix k, M or G.

    Returns:
        The number, and whether it is absolute (MACs per image or parameters).

    Raises:
        UserError: says what was given and what could be meant.
    """
    match = re.fullmatch(r"([0-9.eE+-]+|nan|inf)([kMG]?)", str(text).strip())
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or math.isnan(number):
        raise UserError(
            f"budget {text!r} is not a number: give a fraction like 0.16 or an amount like 0.04M"
        )
    if match[2]:
        if not 0 < number < math.inf:
            raise UserError(f"budget must be positive, got {text}: for instance 0.04M")
        return number * {"k": 1e3, "M": 1e6, "G": 1e9}[match[2]], True
    if not 0 < number <= 1:
        hint = (
            f"did you mean {number / 100:g} ({number:g} %)?"
            if 1 < number <= 100
            else "for instance 0.16, or 0.04M with a suffix"
        )
        raise UserError(f"budget must be in (0, 1], got {text}: {hint}")
    return number, False


def fraction(text: str) -> float:
    """Reads a number that may be written as a fraction: "8/255" or "0.03".

    Raises:
        UserError: it is neither.
    """
    parts = text.split("/")
    try:
        if len(parts) > 2:
            raise ValueError
        return float(parts[0]) / (float(parts[1]) if len(parts) == 2 else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{text!r} is not a number: write for instance 0.03 or 8/255") from None


USUAL = ("macs", "channel", "priced")
"""What a run's name does not mention."""

LOCAL = ("workdir", "data_dir", "checkpoint_every")
"""Fields that say where and how often, not what: they do not change a run's outcome."""


def identity(config: Config) -> dict[str, Any]:
    """What decides a run's outcome, as JSON takes it: fields, and the content of a user's file."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in LOCAL}
    if config.dataset.endswith(".npz") and Path(config.dataset).is_file():
        with open(config.dataset, "rb") as file:
            fields["dataset_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return fields


def workdir(config: Config) -> Path:
    """Where a run is kept: as asked, or runs/ and the run's name."""
    return Path("runs", run_name(config)) if config.workdir is None else Path(config.workdir)


def run_name(config: Config) -> str:
    """Names a run: what tells runs apart at a glance, and a digest of what decides the outcome."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:6]
    kind = [part for part in (config.cost, config.regularity, config.method) if part not in USUAL]
    dataset = Path(config.dataset).stem
    parts = (config.model, dataset, config.budget, *kind, f"seed{config.seed}", digest)
    return "-".join(str(part) for part in parts)


def load(path: str) -> Config:
    """The `config` of a Python file in configs/, given by path or by name.

    Raises:
        UserError: no such file, or it does not define one `config`.
    """
    found = load_all(path)
    if len(found) > 1:
        raise UserError(f"{path} defines {len(found)} runs: give it to bin/sweep")
    return found[0]


def load_all(path: str) -> list[Config]:
    """The `config` of such a file, or its list of `configs`.

    Raises:
        UserError: no such file, or it defines neither.
    """
    import runpy

    folder = Path(__file__).parent.parent / "configs"
    options = {p.stem: p for p in sorted(folder.glob("*.py"))}
    file = Path(path) if path.endswith(".py") else options.get(path)
    if file is None:
        raise unknown("config", path, [*options, "PATH.py"])
    if not file.is_file():
        raise UserError(f"no file {path}: --config takes a path or one of {', '.join(options)}")
    try:
        defined = runpy.run_path(str(file))
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    found = defined.get("configs")
    if not isinstance(found, list):  # a module of this name may have been imported
        found = [defined.get("config")]
    if not found or not all(isinstance(config, Config) for config in found):
        raise UserError(
            f"{path} defines no `config`: it must hold config = Config(...), or a list of them "
            f"as configs"
        )
    return found


def from_json(fields: dict[str, Any]) -> Config:
    """The config written by `dataclasses.asdict`; fields this version does not know are an error.

    Raises:
        UserError: the fields are not those of a config.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    if extra := set(fields) - known:
        raise UserError(
            f"the run's config has unknown fields {sorted(extra)}: it is of another version"
        )
    return Config(**fields)
