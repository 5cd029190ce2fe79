r"""The poster's larger ResNet20, 0.16 M, CIFAR-10, in-train and narrow on CPUs.

    bin/sweep --config=poster_016m_cpu --jobs=2 --seeds=0,1 --attacks=pgd-50-10 --images=1000 \
        --results=results/cifar10

Twice the epochs that configs/comparison.py has for this budget, and pruned as early as in
configs/poster_004m_cpu.py: longer training is what in-train pruning is meant for. It took a
core each of a faster machine 44 to 47 and 41 to 47 minutes: 66.5 / 39.6 and 67.1 / 39.3 % (natural
/ PGD-10, two seeds).
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
