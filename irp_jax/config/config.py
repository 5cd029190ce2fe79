"""The settings of a training run in one frozen dataclass, and the settings for each data set."""

import dataclasses
from typing import Any, get_args

from irp_jax.config.fields import at_least, one_of, positive, share
from irp_jax.data.folders import LARGEST_SIDE
from irp_jax.pruning.cost import Kind
from irp_jax.pruning.masks import Granularity

BASELINES = {"width": 1, "magnitude": 2, "admm": 3}
"""Methods that learn no masks and prune once -> number of stages. A stage takes at least 1
epoch."""

SETTINGS_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "cost": {"latency": ("latency_table", "latency_device")},
    "quantize": {"int8": ("quantize_start",)},
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
"""Field -> its value -> the settings that only this value uses. Other values ignore them."""

METHODS = ("lagrangian", "hinge", *BASELINES)
COSTS = get_args(Kind)
DEFENSES = (
    "none", "fgsm", "fgsm-rs", "n-fgsm", "fgsm-consistency", "fgsm-mep", "gradalign", "gat",
    "pgd", "trades",
)  # fmt: skip
SCHEDULES = ("cyclic", "cosine", "piecewise")
GRANULARITIES = get_args(Granularity)
EVALUATED_ON = ("test", "validation")
LOGS = ("tensorboard", "wandb")

PARENT = "parent"
"""Value of `Config.teacher`: the teacher is the dense network of the same run."""

AVERAGE = "average"
"""Value of `Config.teacher`: the teacher is the moving average of the network itself."""

WITH_PARENT = ("lagrangian", "magnitude", "admm")
"""Methods that train the dense network first, so that it can be the parent."""


WIDEST = 64
"""Largest `Config.width`. A network this wide has thousands of times the parameters."""

MOST = 10**6
"""Upper bound of settings that are counted in int32. It is far below 2**31."""

LARGEST_CUTOUT = 4096
"""Largest `Config.cutout`, in pixels. It is larger than the side of any image here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run that trains, prunes and hardens one network."""

    model: str = "resnet20"
    """Network: resnet8/20/32/44/56/110, resnet18/50, vgg16, wrn28_4, mobilenet_v2, densenet; or
    FILE.py:NAME for your own: a Flax (Linen or NNX) or Equinox module, or a pair (apply,
    variables)."""
    budget: str = "0.16"
    """Cost that may be left: a fraction of the dense cost in (0, 1], such as 0.16, or an absolute
    number of MACs, parameters or nanoseconds, such as 0.04M or 900k."""
    cost: Kind = one_of(COSTS, "macs")
    """Cost that the budget counts: macs (multiply-accumulates per image), params (parameters) or
    latency (measured inference time of an image; needs --latency-table)."""
    latency_table: str = ""
    """File with measured latencies, which bin/latency writes (for --cost=latency)."""
    latency_device: str = ""
    """Name of the device in --latency-table, if it is another machine than this one: the network is
    then trained for that device. Empty: the table must be of this machine."""
    dataset: str = "cifar10"
    """Data set: cifar10, cifar100, svhn_cropped, mnist, fashion_mnist, digits (no download), the
    path of an .npz file, or a folder of images (FOLDER/train/CLASS/*.jpg). The defaults below are
    for CIFAR-10. The other named sets change some of them; digits, for instance, uses 60 epochs of
    fgsm-rs with radius 0.1."""
    image_size: int | None = at_least(8, None, most=LARGEST_SIDE)
    """Height and width in pixels to which the images of a folder are brought, at least 8. Default:
    224. Other data sets have their own size."""
    data_dir: str | None = None
    """Folder of downloaded data: it holds, or will hold, the prepared set, and may hold the
    official archive. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    method: str = one_of(METHODS, "lagrangian")
    """Pruning method: lagrangian (learns masks, never exceeds the budget), hinge (learns masks with
    the published constant-b hinge loss), or a baseline: width (narrow from the start, uniformly or
    by --channels), magnitude (trains the dense network, prunes it once, fine-tunes), admm (Robust
    ADMM)."""
    granularity: Granularity = one_of(GRANULARITIES, "channel")
    """Unit of pruning: channel (gives a compact dense network) or weight (gives a sparse
    network)."""
    width: float = positive(1.0, most=WIDEST)
    """Factor of every channel count of a built-in model, in (0, 64]."""
    activation: str = "relu"
    """Activation of a built-in model: relu, or one of the smooth silu, softplus and gelu."""
    channels: str = ""
    """Keep counts of all channel groups, as GROUP=COUNT,GROUP=COUNT (width). They must fit into the
    budget. `irp_jax.config.channels_of` reads them from the results.json of a run. Empty: all
    groups are narrowed by one factor."""
    epsilon: float = 8 / 255
    """L-inf radius of the attacks, in pixel units of [0, 1]. It is in (0, 1] and may be written as
    8/255."""
    epsilon_warmup: float = share(0.1)
    """Fraction of training, in [0, 1), in which the training radius grows linearly to --epsilon.
    With several stages it is a fraction of the first stage. 0: off."""
    defense: str = one_of(DEFENSES, "n-fgsm")
    """Defense in training. Attacks of one gradient step: n-fgsm, fgsm-rs (as published), fgsm,
    fgsm-consistency, fgsm-mep (remembers a perturbation of each image), gradalign, gat. Attacks of
    several steps: pgd, trades. No attack: none."""
    noise: float | None = positive(None, most=16.0)
    """Radius of the random start, in units of --epsilon, in (0, 16] (fgsm-rs, n-fgsm). Default: 1
    for fgsm-rs, 2 for n-fgsm. A smaller value increases the risk of catastrophic overfitting."""
    natural_weight: float = share(0.0)
    """Weight of the loss on natural images, in [0, 1) (fgsm, fgsm-rs, n-fgsm, pgd). The rest is the
    weight of the loss on adversarial images. A larger value gives more natural and less robust
    accuracy."""
    robustness_weight: float | None = positive(None, most=1e6)
    """Weight of the distance between the outputs for natural and adversarial images, in (0, 1e6]
    (gat, trades). Default: 10 for gat, 6 for trades. A larger value gives more robust and less
    natural accuracy."""
    robustness_rise: float = positive(4.0)
    """Factor of --robustness-weight in the last 15 % of training, above 0 (gat)."""
    guard: bool = True
    """Whether to watch for catastrophic overfitting and for divergence. After an alarm the run
    rolls back to its last sound state. It goes on with a stronger defense after overfitting, and
    with --clip=1 after divergence."""
    attack_steps: int = at_least(1, 10, most=MOST)
    """Number of gradient steps of the training attack, at least 1 (pgd, trades)."""
    epochs: int = 30
    """Number of passes over the training images: at least 1, at least 2 for magnitude and with
    --teacher=parent, at least 3 for admm."""
    batch_size: int = at_least(1, 128)
    """Number of images per step, over all devices together."""
    learning_rate: float = positive(0.1)
    """Peak learning rate of the schedule, above 0."""
    teacher: str = ""
    """Network whose outputs are part of the training targets: parent, the dense network of the same
    run when pruning begins (lagrangian, magnitude, admm); average, the run's own moving average,
    from the freeze of the masks on (needs --ema, not for hinge); or the folder of a saved network.
    Empty: no teacher."""
    teacher_weight: float = positive(0.5, most=1.0)
    """Share of the target that is the teacher's output for the natural image, in (0, 1]. The rest
    is the label. For runs with --teacher."""
    teacher_views: int = at_least(0, 8)
    """Number of augmentations in which each image is shown while a teacher is used. They repeat, so
    the teacher's output is computed once for each. 0: a new augmentation in every epoch. For
    --teacher=parent or a saved network."""
    schedule: str = one_of(SCHEDULES, "cosine")
    """Schedule of the learning rate: cosine (from the peak down to 0), cyclic (from 0 up to the
    peak and back), piecewise (a tenth of the peak from half of training on, a hundredth from three
    quarters on). Each stage of a run has its own."""
    clip: float = at_least(0, 0.0)
    """Largest L2 norm of the loss gradient over all weights; a longer gradient is scaled down to
    it. 0: off. Weight decay and the ADMM term are added after clipping."""
    ema: float = share(0.0)
    """Decay of a moving average of the weights, in [0, 1). The average is the network that is
    evaluated and saved. 0: off."""
    weight_decay: float = at_least(0, 5e-4)
    """L2 penalty on the weights, at least 0. With hinge it applies to the mask logits, too."""
    label_smoothing: float = share(0.0)
    """Probability mass that is moved from the label to all classes evenly, in [0, 1)."""
    cutout: int = at_least(0, 0, most=LARGEST_CUTOUT)
    """Side in pixels of a square that is set to black in each training image. 0: off."""
    prune_start: float = share(0.05)
    """Start of pruning as a fraction of training, in [0, 1) and below --prune-stop (lagrangian)."""
    prune_stop: float = share(0.2)
    """End of pruning as a fraction of training, in [0, 1) (lagrangian). The cost then meets the
    budget, the masks are frozen, and pruned channels are removed."""
    spread: float = 0.0
    """Largest factor between the share of channels that a group keeps and the share that uniform
    pruning would keep at the same cost (lagrangian, channels): 2 allows between half and twice. At
    least 1, or 0 for no limit."""
    reinit: bool = False
    """Whether the compact network starts from new weights when the masks are frozen, instead of the
    weights learned so far (lagrangian, channels)."""
    hinge_strength: float = positive(1.0)
    """Constant b of the hardware loss, its weight beside the cross-entropy, above 0 (hinge)."""
    mask_learning_rate: float = positive(0.1)
    """Learning rate of the mask logits, above 0 (hinge)."""
    pretraining: float = positive(1 / 3)
    """Fraction of training for the first stage, in which the network is dense (magnitude, admm)."""
    admm_stage: float = positive(1 / 3)
    """Fraction of training for the ADMM stage, after --pretraining (admm). The rest is fine-tuning
    of the pruned network. The two together are below 1."""
    admm_rho: float = positive(1e-3)
    """Initial strength rho of the pull towards the pruned weights, above 0 (admm). It grows about
    tenfold during the ADMM stage."""
    admm_updates: int = at_least(1, 10, most=MOST)
    """Largest number of times that the pruned weights are chosen anew in the ADMM stage (admm)."""
    restart_rate: float = positive(1.0)
    """Peak learning rate of the later stages as a multiple of the first stage's, above 0
    (magnitude, admm, and any run with --teacher=parent)."""
    quantize: str = ""
    """int8: the compact network is trained in 8-bit integers from --quantize-start on, and saved so
    (channels, not for hinge). Empty: float32."""
    quantize_start: float = share(0.8)
    """Start of training in 8-bit integers as a fraction of training, in [0, 1) and not before the
    masks are frozen. At least the last epoch is trained so. For runs with --quantize."""
    validation: float = share(0.02)
    """Fraction of the training images that are held out for validation, in [0, 1). It has no effect
    on an .npz file or a folder with validation images."""
    evaluate_on: str = one_of(EVALUATED_ON, "test")
    """Images for the final accuracies: test, or validation (the held-out images), for runs that
    compare settings. It is part of the run's identity, so test figures need a run with
    --evaluate-on=test."""
    train_images: int = at_least(0, 0)
    """Number of training images to use, with the proportions of the classes kept, from those not
    held out. 0: all."""
    seed: int = at_least(0, 0, most=2**32 - 1)
    """Seed of all random choices, in [0, 2**32 - 1]."""
    workdir: str | None = None
    """Folder of the run. The same command resumes the run that is there. Default: runs/<name>."""
    checkpoint_every: float = at_least(0, 60.0)
    """Minimum time between checkpoints, in seconds. Checkpoints are written after an epoch, and
    after 50 steps within a long one."""
    log_to: str = ""
    """Where else the figures of each epoch go, besides metrics.jsonl: tensorboard, wandb, or both
    with a comma. It is no part of the run's identity."""


SUITED: dict[str, dict[str, Any]] = {
    "mnist": {"epsilon": 0.3, "epochs": 15, "defense": "fgsm-rs"},
    "fashion_mnist": {"epsilon": 0.1, "epochs": 20},
    "svhn_cropped": {"learning_rate": 0.05, "epochs": 20},
    "digits": {
        "epsilon": 0.1, "epsilon_warmup": 0.0, "epochs": 60, "validation": 0.1,
        "defense": "fgsm-rs", "schedule": "cyclic", "learning_rate": 0.2,
    },
}  # fmt: skip
"""Data set -> settings that suit it better than the defaults of `Config`, which suit CIFAR-10."""


def suited(dataset: str, base: Config | None = None) -> Config:
    """Returns a config for a data set with the settings that suit it.

    Args:
        dataset: name of a data set, or path of an .npz file or a folder.
        base: source of all other settings. A setting that differs from what suits the data set of
            `base` is kept.
    """
    base = base or Config()
    now, then = (SUITED.get(name, {}) for name in (base.dataset, dataset))
    usual, new = dataclasses.replace(Config(), **now), dataclasses.replace(Config(), **then)
    open_to_change = {k for k in {*now, *then} if getattr(base, k) == getattr(usual, k)}
    return dataclasses.replace(
        base, dataset=dataset, **{k: getattr(new, k) for k in open_to_change}
    )
