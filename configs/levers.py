r"""What else moves the accuracy of a narrow ResNet20 on CIFAR-10, beside the first lines of dial.

    bin/sweep --config=levers --results=mine

Networks and training of configs/dial.py with RS-FGSM: with a moving average of the weights, taught
by that average, and with smooth activations.
"""

import dataclasses

from irp_jax.config import Config

BASE = Config(
    method="width",
    budget="0.04M",
    cost="params",
    defense="fgsm-rs",
    epochs=8,
    batch_size=64,
    epsilon_warmup=0.4,
    train_images=15_000,
    validation=0.1,
    evaluate_on="validation",
)

LEVERS: list[dict] = [
    {"ema": 0.998},
    {"ema": 0.998, "teacher": "average"},
    {"activation": "silu"},
    {"activation": "softplus"},
]

configs = [dataclasses.replace(BASE, **lever) for lever in LEVERS]
