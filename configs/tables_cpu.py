r"""Rows of configs/tables.py for the larger networks, CIFAR-10, sized for CPUs.

    bin/sweep --config=tables_cpu --results=results/tables_cpu

Channels of VGG16 and ResNet18, in-train and at four of the eight budgets also uniformly narrow from
the start, and weights of ResNet56, on 10,000 images for eight epochs; weights of VGG16 and
ResNet18, which cost the whole network to the end, for four. So few epochs want small batches and a
long warm-up of the radius (configs/comparison.py). Pruning ends after a quarter of training, as
these networks are slow while they are large: VGG16, ResNet18 and ResNet56 train 50, 27 and 80
images a second on a CPU core. VGG16 and ResNet18 want short gradients. Without, VGG16 had a loss of
3.3 in the first epoch, and had learnt nothing when it was cut, nor an epoch later
(results/unclipped_vgg16.json); ResNet18 of half the width learnt less (results/trials_resnet18).
Weights of ResNet18, and its half of the parameters, were measured before that was known, without.
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
