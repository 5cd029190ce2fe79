"""The poster's larger network: ResNet20 cut to 0.16 million parameters, CIFAR-10, eps 8/255.

    bin/train --config=poster_016m

Published for the original method: 79.67 % natural, 43.22 % PGD-10 (Vemparala et al. 2021).
Not measured with this package yet; it wants an accelerator:

    bin/sweep --config=poster_016m --seeds=0,1,2 --results=results
"""

from irp_jax.config import Config

config = Config(model="resnet20", budget="0.16M", cost="params", epochs=120)
