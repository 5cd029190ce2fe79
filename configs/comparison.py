"""What in-train pruning is worth: ResNet20 on CIFAR-10 by every method, at equal training time.

    bin/sweep --config=comparison --jobs=1 --attacks=pgd-50-10 --images=1000 --results=results

Epochs are an estimate of what takes each method about half an hour on two CPU cores (a small
network's epoch is a fast one); width scaling runs a second time at the epochs of `priced`. Not run
yet.
"""

from irp_jax.config import Config

EPOCHS = {"priced": 24, "paper": 16, "admm": 18, "magnitude": 21, "width": 28}

configs = [
    Config(model="resnet20", budget=budget, cost="params", method=method, epochs=epochs)
    for budget in ("0.04M", "0.16M")
    for method, epochs in (*EPOCHS.items(), ("width", EPOCHS["priced"]))
]
