r"""Settings that trade natural for robust accuracy, with a narrow ResNet20 on CIFAR-10.

    bin/sweep --config=dial --results=mine

These are 13 networks of 0.04 M parameters, with eight passes over 15,000 images each. A run takes
seven to ten minutes on a busy CPU core. PGD-10 accuracy is of held-out images.

The first nine vary settings of defenses of one gradient step: the radius of the random start, the
weight of the loss on natural images, and the weight of the distance between natural and adversarial
outputs. The other four vary what may change both accuracies: a moving average of the weights, the
average as a teacher, and two smooth activations.

`bin/report mine --tradeoff=tradeoff.svg` draws the accuracies. Ten runs are measured: the first
eight (results/dial), and the average as a teacher and SiLU (results/levers).
"""

import dataclasses

from irp_jax.config import Config

SHORT = Config(
    method="width",
    budget="0.04M",
    cost="params",
    epochs=8,
    batch_size=64,
    epsilon_warmup=0.4,
    train_images=15_000,
    validation=0.1,
    evaluate_on="validation",
)

DIALS: list[dict] = [
    *({"defense": "n-fgsm", "noise": noise} for noise in (None, 1.0)),
    *({"defense": "fgsm-rs", "noise": noise} for noise in (None, 0.5)),
    *({"defense": name, "natural_weight": 0.3} for name in ("n-fgsm", "fgsm-rs")),
    *({"defense": "gat", "robustness_weight": weight} for weight in (5.0, None, 20.0)),
]

LEVERS: list[dict] = [
    {"ema": 0.998},
    {"ema": 0.998, "teacher": "average"},
    {"activation": "silu"},
    {"activation": "softplus"},
]

configs = [dataclasses.replace(SHORT, **dial) for dial in DIALS]
configs += [dataclasses.replace(SHORT, defense="fgsm-rs", **lever) for lever in LEVERS]
