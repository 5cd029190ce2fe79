r"""A run on CIFAR-10 that overfits to FGSM, without and with the guard.

    bin/sweep --config=guard_cifar10 --jobs=1 --results=results/guard

It has few images, twice the usual radius, and FGSM without a random start. Without the guard, PGD
accuracy falls to zero, while FGSM accuracy on the training images rises to one half.
"""

import dataclasses

from irp_jax.config import Config

BASE = Config(
    model="resnet20",
    method="width",
    budget="0.04M",
    cost="params",
    defense="fgsm",
    epsilon=16 / 255,
    epsilon_warmup=0.0,
    epochs=20,
    batch_size=64,
    validation=0.1,
    train_images=5000,
)

configs = [dataclasses.replace(BASE, guard=guard) for guard in (False, True)]
