"""ResNet20 on CIFAR-10 with 16 % of its operations: what bin/train does without any flag.

    bin/train --config=cifar10

Not measured at its 30 epochs yet. With --epochs=8 --schedule=cyclic --learning-rate=0.2
--epsilon-warmup=0, once the defaults, on two CPU cores shared with other work: 27 minutes, 51.0 %
natural, 32.3 % PGD-10 on all test images (results/cifar10, results/zoo).
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.16", dataset="cifar10", epsilon=8 / 255, epochs=30)
