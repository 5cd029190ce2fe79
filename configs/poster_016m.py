"""The poster's larger network: ResNet20 pruned to 0.16 M parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_016m

Published for the original method: 79.67 % natural, 43.22 % PGD-10 (Vemparala et al. 2021). The
README has the result of this config over three seeds. The recipe is that of configs/tables.py.
"""

from irp_jax.config import Config

config = Config(
    model="resnet20", budget="0.16M", cost="params", epochs=60, learning_rate=0.2, prune_stop=0.3
)
