"""What a training run is: one frozen dataclass, and the settings that suit a data set."""

import dataclasses
from typing import Any, get_args

from irp_jax.config.fields import at_least, one_of, positive, share
from irp_jax.pruning.cost import Kind
from irp_jax.pruning.masks import Granularity

BASELINES = {"width": 1, "magnitude": 2, "admm": 3}
"""Methods that learn no masks but prune once -> stages of training, each at least an epoch."""

SETTINGS_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "method": {
        "lagrangian": ("prune_start", "prune_stop", "spread", "reinit"),
        "hinge": ("hinge_strength", "mask_learning_rate"),
        "magnitude": ("pretraining", "restart_rate"),
        "admm": ("pretraining", "admm_stage", "admm_rho", "admm_updates", "restart_rate"),
    },
    "defense": {
        "fgsm": ("natural_weight",),
        "fgsm-rs": ("noise", "natural_weight"),
        "n-fgsm": ("noise", "natural_weight"),
        "pgd": ("attack_steps", "natural_weight"),
        "trades": ("attack_steps", "robustness_weight"),
        "gat": ("robustness_weight", "robustness_rise"),
    },
}
"""Field -> value -> the settings that change nothing unless the field has such a value."""

METHODS = ("lagrangian", "hinge", *BASELINES)
COSTS = get_args(Kind)
DEFENSES = (
    "none", "fgsm", "fgsm-rs", "n-fgsm", "fgsm-consistency", "fgsm-mep", "gradalign", "gat",
    "pgd", "trades",
)  # fmt: skip
SCHEDULES = ("cyclic", "cosine", "piecewise")
GRANULARITIES = get_args(Granularity)
EVALUATED_ON = ("test", "validation")

PARENT = "parent"
"""What `Config.teacher` is where the dense network of the same run teaches."""

AVERAGE = "average"
"""What `Config.teacher` is where the moving average of the network teaches it."""

WITH_PARENT = ("lagrangian", "magnitude", "admm")
"""Methods that train the dense network first."""


WIDEST = 64
"""Times the usual channels: a network that wide has thousands of times the parameters."""

MOST = 10**6
"""Of what is counted in int32, far below where that ends and above what anybody wants."""

LARGEST_CUTOUT = 4096
"""More than the side of any image here: it blackens all there is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train, prune and harden a network in one run."""

    model: str = "resnet20"
    """resnet8/20/32/44/56/110, resnet18, vgg16, wrn28_4, mobilenet_v2, densenet; or FILE.py:NAME, a
    network of your own: a Flax (Linen or NNX) or Equinox module, or a pair (apply, variables)."""
    budget: str = "0.16"
    """What may be left: a fraction of the dense cost (0.16) or an absolute amount (0.04M, 900k)."""
    cost: Kind = one_of(COSTS, "macs")
    """What the budget counts: macs (multiply-accumulates per image) or params."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn_cropped, mnist, fashion_mnist, digits (no download), or PATH.npz. The
    defaults below are CIFAR-10's; the other sets by name have some of their own, digits 60 epochs
    of fgsm-rs at a radius of 0.1."""
    data_dir: str | None = None
    """Where a prepared set or the official archive lies, or shall lie."""
    method: str = one_of(METHODS, "lagrangian")
    """How the network is made small: lagrangian (masks learned, the budget never exceeded), hinge
    (masks under the constant-b hinge), or a baseline: width (narrow from the start, uniformly or as
    --channels says), magnitude (dense, pruned once, fine-tuned), admm (Robust ADMM)."""
    granularity: Granularity = one_of(GRANULARITIES, "channel")
    """What is pruned: channel (a small dense network) or weight (a sparse one)."""
    width: float = positive(1.0, most=WIDEST)
    """Multiplies every channel count of the model, if it is one of ours."""
    activation: str = "relu"
    """Of one of our models: relu, or silu, softplus or gelu, which are smooth."""
    channels: str = ""
    """How many channels each group keeps, instead of uniformly fewer: GROUP=COUNT,GROUP=COUNT, as
    under `keep_counts` in the results.json of another run, within the budget (width)."""
    epsilon: float = 8 / 255
    """L-inf radius to be robust against, in pixels of [0, 1]; may be written 8/255."""
    epsilon_warmup: float = share(0.1)
    """Fraction of training (of the first stage, where there are several) over which the radius
    trained against grows linearly to --epsilon; 0 is off."""
    defense: str = one_of(DEFENSES, "n-fgsm")
    """What makes the network robust. One gradient step an image: n-fgsm, fgsm-rs (as published),
    fgsm, fgsm-consistency, fgsm-mep (remembers perturbations), gradalign, gat. Many: pgd, trades.
    Or none."""
    noise: float | None = positive(None, most=16.0)
    """Radius of the random start in units of --epsilon, 1 for fgsm-rs and 2 for n-fgsm if not
    given (fgsm-rs, n-fgsm). Less is nearer to catastrophic overfitting."""
    natural_weight: float = share(0.0)
    """Share of the loss that is on the natural images, in [0, 1); the rest is on the perturbed ones
    (fgsm, fgsm-rs, n-fgsm, pgd). More is more natural accuracy and less robust accuracy."""
    robustness_weight: float | None = positive(None, most=1e6)
    """Weight of the distance between natural and perturbed answers, 10 for gat and 6 for trades if
    not given (gat, trades). More is more robust accuracy and less natural accuracy."""
    robustness_rise: float = positive(4.0)
    """What that weight is multiplied by in the last 15 % of training (gat)."""
    guard: bool = True
    """Whether training that overfits its own attack, or diverges, goes back to before and on with a
    stronger defense, or with --clip=1."""
    attack_steps: int = at_least(1, 10, most=MOST)
    """Gradient steps of the attack in training (pgd, trades)."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = at_least(1, 128)
    """Images per step, over all devices."""
    learning_rate: float = positive(0.1)
    """Peak of the schedule."""
    teacher: str = ""
    """Whose answers are part of what the small network learns: parent, the dense network of the
    same run as it is when pruning begins (lagrangian, magnitude, admm); average, its own moving
    average once it is cut (with --ema); or the folder of a saved network. Empty for nobody."""
    teacher_weight: float = positive(0.5, most=1.0)
    """Share of the target that is the teacher's answer to the natural image; the rest is the
    label."""
    teacher_views: int = at_least(0, 8)
    """In how many augmentations an image is shown while it is taught, over and over, so that the
    teacher's answers are computed once; 0 is a new one every epoch (parent, or a saved network)."""
    schedule: str = one_of(SCHEDULES, "cosine")
    """How the learning rate moves: cosine (down), cyclic (up and down) or piecewise (two drops)."""
    clip: float = at_least(0, 0.0)
    """Longest gradient of the loss, all weights together; 0 is off. Decay and the pull of admm are
    added to what it leaves."""
    ema: float = share(0.0)
    """Decay of a moving average of the weights, which becomes the network; 0 is off."""
    weight_decay: float = at_least(0, 5e-4)
    """L2 penalty on the weights."""
    label_smoothing: float = share(0.0)
    """Probability mass taken from the label, in [0, 1)."""
    cutout: int = at_least(0, 0, most=LARGEST_CUTOUT)
    """Side in pixels of a square blackened in each training image; 0 is off."""
    prune_start: float = share(0.05)
    """When pruning starts, as a fraction of training (lagrangian)."""
    prune_stop: float = share(0.2)
    """When the budget is reached, masks are frozen and the network is compacted (lagrangian)."""
    spread: float = 0.0
    """How many times the share that uniform pruning would leave a channel group may keep at most,
    and what part of it at least: 2 is twice and half of it; 0 is any (lagrangian, channels)."""
    reinit: bool = False
    """Whether the small network starts from new weights once its channels are chosen, instead of
    those it has (lagrangian, channels)."""
    hinge_strength: float = positive(1.0)
    """The constant b of the hardware loss (hinge)."""
    mask_learning_rate: float = positive(0.1)
    """Learning rate of the mask logits (hinge)."""
    pretraining: float = positive(1 / 3)
    """Fraction of training that the dense network gets first (magnitude, admm)."""
    admm_stage: float = positive(1 / 3)
    """Fraction of training that ADMM gets next; the rest is for what it leaves (admm)."""
    admm_rho: float = positive(1e-3)
    """Strength of the pull towards the pruned weights at first; it grows tenfold (admm)."""
    admm_updates: int = at_least(1, 10, most=MOST)
    """How often, at most, the pruned weights are chosen anew during ADMM (admm)."""
    restart_rate: float = positive(1.0)
    """Peak learning rate of the later stages, relative to the first (magnitude, admm, and with
    --teacher=parent)."""
    validation: float = share(0.02)
    """Fraction of the training images held out."""
    evaluate_on: str = one_of(EVALUATED_ON, "test")
    """What the final accuracies are measured on: test, or validation, the images held out, while
    settings are being chosen. Part of what a run is: figures on test images take a run of their
    own."""
    train_images: int = at_least(0, 0)
    """How many of the rest to learn from, in the classes' proportions; 0 is all."""
    seed: int = at_least(0, 0, most=2**32 - 1)
    """Of every random choice."""
    workdir: str | None = None
    """Where the run is kept; running the same command again resumes it. Default: runs/<name>."""
    checkpoint_every: float = at_least(0, 60.0)
    """Seconds between checkpoints, at least; they are taken at the end of an epoch."""


SUITED: dict[str, dict[str, Any]] = {
    "mnist": {"epsilon": 0.3, "epochs": 15, "defense": "fgsm-rs"},
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
        base: where everything else is taken from, and whatever is not usual for its own data set
            stays.
    """
    base = base or Config()
    now, then = (SUITED.get(name, {}) for name in (base.dataset, dataset))
    usual, new = dataclasses.replace(Config(), **now), dataclasses.replace(Config(), **then)
    open_to_change = {k for k in {*now, *then} if getattr(base, k) == getattr(usual, k)}
    return dataclasses.replace(
        base, dataset=dataset, **{k: getattr(new, k) for k in open_to_change}
    )
