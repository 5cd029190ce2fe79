r"""Tests whether the defaults ever collapse: nine models on digits, two radii, 60 epochs.

    bin/sweep --config=steady --results=results/steady

The larger radius is twice the usual one. The figure of interest is by how much final PGD accuracy
is below that of the best epoch ("lost" in the tables). Both are measured on held-out images, so
twice as many images as usual are held out. Two runs at the larger radius have no guard, for
comparison.
"""

import dataclasses

from irp_jax.config import Config, suited

MODELS = (
    "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet18", "vgg16",
    "wrn28_4",
)  # fmt: skip
BASE = dataclasses.replace(suited("digits", Config()), validation=0.2)

configs = [
    dataclasses.replace(BASE, model=model, epsilon=epsilon)
    for epsilon in (0.1, 0.2)
    for model in MODELS
]
configs += [
    dataclasses.replace(BASE, model=model, epsilon=0.2, guard=False)
    for model in ("resnet8", "resnet20")
]
