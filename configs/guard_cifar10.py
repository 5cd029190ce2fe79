r"""The guard at work on photographs: few of them, twice the usual radius, FGSM without a start.

    bin/sweep --config=guard_cifar10 --jobs=1 --results=results/guard

Without the guard accuracy under many steps falls to nothing while accuracy under one, on the images
trained on, rises to one half.
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
