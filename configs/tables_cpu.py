r"""Rows of configs/tables.py for the larger networks, CIFAR-10, sized for CPUs.

    bin/sweep --config=tables_cpu --results=results/tables_cpu

Eight epochs of 10,000 images: VGG16 and ResNet18 with channel masks, at four of the eight budgets
also narrow from the start, and ResNet56 with weight masks. Four epochs: VGG16 and ResNet18 with
weight masks, where every step costs as much as the dense network. With so few epochs, small batches
and a long warm-up of the radius are better (configs/comparison.py). Pruning ends after a quarter of
training, because these networks are slow until then: dense VGG16, ResNet18 and ResNet56 train 50,
27 and 80 images per second on a CPU core.

VGG16 and ResNet18 need gradient clipping. Without it, VGG16 had a loss of 3.3 in the first epoch.
It had learnt nothing when it was pruned, nor an epoch later (results/unclipped_vgg16.json).
ResNet18 of half the width learnt less without it (results/trials_resnet18). ResNet18 with weight
masks, and with channel masks at half of the parameters, were measured without clipping, before this
was known.
"""

import dataclasses

from irp_jax.config import Config

SHORT = Config(
    cost="params",
    train_images=10_000,
    epochs=8,
    batch_size=64,
    epsilon_warmup=0.4,
    prune_start=0.05,
    prune_stop=0.25,
)

VGG16 = dataclasses.replace(SHORT, model="vgg16", clip=1.0)
RESNET18 = dataclasses.replace(SHORT, model="resnet18", clip=1.0)
RESNET56 = dataclasses.replace(SHORT, model="resnet56", granularity="weight", epsilon=4 / 255)

configs = [
    *(
        dataclasses.replace(network, budget=budget, method=method)
        for method in ("lagrangian", "width")
        for network, budget in (
            (VGG16, "0.1"),
            (RESNET18, "0.1"),
            (VGG16, "0.76M"),
            (VGG16, "5.51M"),
        )
    ),
    *(
        dataclasses.replace(network, budget=budget)
        for network in (VGG16, RESNET18)
        for budget in ("0.5", "0.25")
    ),
    *(
        dataclasses.replace(network, budget=budget, granularity="weight", epochs=4)
        for network in (VGG16, dataclasses.replace(RESNET18, clip=0.0))
        for budget in ("0.1", "0.05", "0.01")
    ),
    dataclasses.replace(RESNET56, budget="0.13M"),
]
