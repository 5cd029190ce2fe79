r"""Is it the channels that in-train pruning keeps, or the weights it keeps in them?

    bin/sweep --config=architecture --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/comparison

The network that `lagrangian` found in configs/comparison.py at 0.04 M parameters, trained from
scratch by the same recipe for as many epochs, not for as long: Scratch-E of Liu et al. 2019
(Rethinking the Value of Network Pruning, section 3). Put in the results.json of a run of your own
to ask it of that one.
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
