"""ResNet20 on CIFAR-10 with 16 % of its MACs: the run of bin/train without any flag.

    bin/train --config=cifar10

The 30 epochs are not measured yet. With --epochs=8 --schedule=cyclic --learning-rate=0.2
--epsilon-warmup=0, which were the defaults once, it took 27 minutes on two CPU cores shared with
other work. It reached 51.0 % natural and 32.3 % PGD-10 accuracy on all test images
(results/cifar10, results/zoo).
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.16", dataset="cifar10", epsilon=8 / 255, epochs=30)
