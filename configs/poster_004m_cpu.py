r"""The poster's smallest network in two hours of two CPU cores: ResNet20 cut to 0.04 M, CIFAR-10.

    bin/sweep --config=poster_004m_cpu --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/cifar10

The recipe of configs/comparison.py with 20 epochs, of which the small network gets 14 instead of 3:
they take nearly half of the time. Measured: 61.5 % natural, 35.8 % PGD-10, 131 minutes with tests
running beside it for some 40 of them (results/cifar10).
"""

from irp_jax.config import Config

config = Config(
    model="resnet20",
    budget="0.04M",
    cost="params",
    epochs=20,
    batch_size=64,
    epsilon_warmup=0.4,
    prune_start=0.1,
    prune_stop=0.3,
)
