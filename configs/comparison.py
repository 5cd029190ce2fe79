r"""What in-train pruning is worth: ResNet20 on CIFAR-10 by every method, at equal training time.

    bin/sweep --config=comparison --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/comparison

Epochs are what takes each method some 20 minutes on two fast CPU cores, by its images per second
there: an epoch of a small network is a fast one, so a method that is small early gets more of them.
Width scaling runs a second time, at the epochs of `priced`.
"""

from irp_jax.config import Config

EPOCHS = {
    "0.04M": {"priced": 10, "admm": 8, "paper": 7, "width": 15, "magnitude": 10},
    "0.16M": {"priced": 9, "admm": 7, "paper": 7, "width": 10, "magnitude": 8},
}

configs = [
    Config(model="resnet20", budget=budget, cost="params", method=method, epochs=count)
    for budget, epochs in EPOCHS.items()
    for method, count in (("width", epochs["priced"]), *epochs.items())
]
