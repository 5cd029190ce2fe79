r"""What the settings between natural and robust accuracy trade: a narrow ResNet20, CIFAR-10.

    bin/sweep --config=dial --jobs=2 --results=mine

Thirteen networks of 0.04 M parameters, ten passes over 20,000 images each, a few minutes on a CPU
core; PGD-10 on held-out images. Every defence of one gradient step that has a number to choose is
here with several of them: the noise that the attack starts from, the share of the loss on clean
images, the weight of the distance between clean and perturbed answers.
"""

import dataclasses

from irp_jax.config import Config

SHORT = Config(
    method="width",
    budget="0.04M",
    cost="params",
    epochs=10,
    batch_size=64,
    epsilon_warmup=0.4,
    train_images=20_000,
    validation=0.1,
    evaluate_on="validation",
)

DIALS: list[dict] = [
    *({"defense": "n-fgsm", "noise": noise} for noise in (2.0, 1.0, 0.5)),
    *({"defense": "fgsm-rs", "noise": noise} for noise in (1.0, 0.5)),
    *({"defense": "fgsm-rs", "clean_weight": weight} for weight in (0.15, 0.3, 0.5)),
    *({"defense": "n-fgsm", "clean_weight": weight} for weight in (0.15, 0.5)),
    *({"defense": "gat", "robustness_weight": weight} for weight in (5.0, 10.0, 20.0)),
]

configs = [dataclasses.replace(SHORT, **dial) for dial in DIALS]
