"""The poster's smallest network: ResNet20 cut to 0.04 million parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_004m

Published for the original method: 70.73 % natural, 39.31 % PGD-10 (Vemparala et al. 2021).
Not measured with this package yet; it wants an accelerator:

    bin/sweep --config=poster_004m --seeds=0,1,2 --results=results
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.04M", cost="params", epochs=120)
