"""Quick start: scikit-learn's 8 x 8 digits, no download, about a minute on two CPU cores.

    bin/train --config=digits

The same as `bin/train --model=resnet20 --budget=0.16 --dataset=digits`.
"""

from irp_jax.config import Config, suited

config = suited("digits", Config(model="resnet20", budget="0.16"))
