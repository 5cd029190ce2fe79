r"""The poster's larger network for CPUs: ResNet20 at 0.16 M parameters, CIFAR-10.

    bin/sweep --config=poster_016m_cpu --jobs=2 --seeds=0,1 --attacks=pgd-50-10 --images=1000 \
        --results=results/cifar10

The first config prunes in training, the second trains a narrow network. They have twice the epochs
of configs/comparison.py at this budget, because in-train pruning is meant for longer training.
Pruning is as early as in configs/poster_004m_cpu.py. Measured on one core of a faster machine, mean
of two seeds (natural / PGD-10): in-train 66.5 / 39.6 % in 44 to 47 minutes, narrow 67.1 / 39.3 % in
41 to 47 minutes.
"""

import dataclasses

from irp_jax.config import Config

SHORT = Config(
    model="resnet20",
    budget="0.16M",
    cost="params",
    epochs=14,
    batch_size=64,
    epsilon_warmup=0.4,
)

configs = [
    dataclasses.replace(SHORT, prune_start=0.1, prune_stop=0.3),
    dataclasses.replace(SHORT, method="width"),
]
