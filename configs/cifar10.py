"""ResNet20 on CIFAR-10 with 16 % of its operations: what bin/train does without any flag.

    bin/train --config=cifar10

Not measured at its 30 epochs yet. With --epochs=10 --validation=0 RS-FGSM, at an earlier
commit whose learning rate ended at 2.5 % of its peak, on one CPU core shared with other work: 54
minutes, 54.9 % natural, 31.7 % PGD-10 on all test images (results/cifar10).
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.16", dataset="cifar10", epsilon=8 / 255, epochs=30)
