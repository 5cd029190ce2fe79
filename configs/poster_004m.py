"""The poster's smallest network: ResNet20 pruned to 0.04 M parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_004m

Published for the original method: 70.73 % natural, 39.31 % PGD-10 (Vemparala et al. 2021). The
README has the result of this config over three seeds. It needs an accelerator: six such runs at
once take eight minutes on one GPU. The recipe is that of configs/tables.py.
"""

from irp_jax.config import Config

config = Config(
    model="resnet20", budget="0.04M", cost="params", epochs=60, learning_rate=0.2, prune_stop=0.3
)
