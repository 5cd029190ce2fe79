r"""Separates the channels that in-train pruning keeps from the weights that it keeps.

    bin/sweep --config=architecture --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/comparison

This trains the network that `lagrangian` found in configs/comparison.py at 0.04 M parameters from
scratch. The recipe and the number of epochs are the same; the training time is shorter. It is
Scratch-E of Liu et al. 2019 (Rethinking the Value of Network Pruning, section 3). For a run of your
own, put its results.json in `FOUND`.
"""

from pathlib import Path

from irp_jax.config import Config, channels_of

RESULTS = Path(__file__).parents[1] / "results" / "comparison"
FOUND = RESULTS / "resnet20-cifar10-0.04M-params-seed0-8635e5.json"

config = Config(
    model="resnet20",
    budget="0.04M",
    cost="params",
    method="width",
    channels=channels_of(str(FOUND)),
    epochs=8,
    batch_size=64,
    epsilon_warmup=0.4,
)
