"""ResNet20 on CIFAR-10 with 16 % of its operations: what bin/train does without any flag.

bin/train --config=cifar10
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.16", dataset="cifar10", epsilon=8 / 255, epochs=30)
