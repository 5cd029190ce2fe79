r"""The poster's smallest network for CPUs: ResNet20 pruned to 0.04 M parameters, CIFAR-10.

    bin/sweep --config=poster_004m_cpu --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/cifar10

It takes two hours on two CPU cores. The recipe is that of configs/comparison.py with 20 epochs. The
compact network trains for 14 of them instead of 3, which takes almost half of the time. Measured:
61.5 % natural, 35.8 % PGD-10, in 131 minutes, for about 40 of which tests ran at the same time
(results/cifar10).
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
