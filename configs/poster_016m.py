"""The poster's larger network: ResNet20 cut to 0.16 million parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_016m

Published for the original method: 79.67 % natural, 43.22 % PGD-10 (Vemparala et al. 2021). What
comes out here, over three seeds, is in the README. The recipe is that of configs/tables.py.
"""

from irp_jax.config import Config

config = Config(
    model="resnet20", budget="0.16M", cost="params", epochs=60, learning_rate=0.2, prune_stop=0.3
)
