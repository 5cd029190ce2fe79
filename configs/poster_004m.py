"""The poster's smallest network: ResNet20 cut to 0.04 million parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_004m

Published for the original method: 70.73 % natural, 39.31 % PGD-10 (Vemparala et al. 2021). What
comes out here, over three seeds, is in the README; it wants an accelerator, eight minutes of one
GPU for six such runs at once. The recipe is that of configs/tables.py.
"""

from irp_jax.config import Config

config = Config(
    model="resnet20", budget="0.04M", cost="params", epochs=60, learning_rate=0.2, prune_stop=0.3
)
