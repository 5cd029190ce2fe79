"""What a training run is: one frozen dataclass, checked before anything is loaded or written."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from irp_jax import attacks
from irp_jax.attacks import FAST_ATTACKS
from irp_jax.data import check_name
from irp_jax.errors import UserError, unknown
from irp_jax.models import MODELS

METHODS = ("priced", "paper")
COSTS = ("macs", "params")
REGULARITIES = ("channel", "weight")


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
    """How masks are learned: priced (meets the budget exactly) or paper (constant-b hinge)."""
    regularity: str = "channel"
    """What is pruned: channel (a small dense network) or weight (a sparse one)."""
    width: float = 1.0
    """Multiplies every channel count of the model."""
    epsilon: float = 8 / 255
    """L-inf radius to be robust against, in pixels of [0, 1]; may be written 8/255."""
    attack: str = "n-fgsm"
    """One-step attack that makes the training images: n-fgsm, rs-fgsm (as published) or fgsm."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all devices."""
    learning_rate: float = 0.2
    """Peak of the one-cycle schedule."""
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
    validation: float = 0.02
    """Fraction of the training images held out."""
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
    "digits": {"epsilon": 0.1, "epochs": 60, "validation": 0.1, "attack": "rs-fgsm"},
}
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
        ("attack", config.attack, FAST_ATTACKS),
    ):
        if value not in options:
            raise unknown(kind, value, options)
    parse_budget(config.budget)
    attacks.linf(config.epsilon)
    if config.seed >= 2**32:
        raise UserError(f"--seed must be below 2^32, got {config.seed}")
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("cutout", 0)):
        if getattr(config, name) < least:
            raise UserError(f"{_flag(name)} must be at least {least}, got {getattr(config, name)}")
    for name in ("width", "learning_rate", "hinge_strength", "mask_learning_rate"):
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"{_flag(name)} must be positive, got {getattr(config, name):g}")
    for name in ("label_smoothing", "validation"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{_flag(name)} must be in [0, 1), got {getattr(config, name):g}")
    for name in ("weight_decay", "checkpoint_every"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"{_flag(name)} must be 0 or more, got {getattr(config, name):g}")
    if not 0 <= config.ramp_start < config.ramp_stop < 1:
        raise UserError(
            f"--ramp-start and --ramp-stop must satisfy 0 <= start < stop < 1, got "
            f"{config.ramp_start:g} and {config.ramp_stop:g}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
            f"did you mean {number / 100:g}?"
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
        UserError: no such file, or it defines no `config`.
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
        config = runpy.run_path(str(file)).get("config")
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    if not isinstance(config, Config):
        raise UserError(f"{path} defines no `config`: it must hold config = Config(...)")
    return config


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
