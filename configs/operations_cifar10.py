r"""In-train pruning beside its published rule: 0.7, 0.5 and 0.3 of the operations, on CIFAR-10.

    bin/sweep --config=operations_cifar10 --results=results/operations_cifar10    # --seeds=0,1

The published table's budgets for ResNet20, on 20,000 images for five epochs: some ten minutes of
one CPU core a run. Both rules have the same images, epochs and defence, and the settings of
configs/comparison.py, which were chosen for short runs.
"""

from irp_jax.config import Config

configs = [
    Config(
        model="resnet20",
        budget=budget,
        method=method,
        train_images=20_000,
        epochs=5,
        batch_size=64,
        epsilon_warmup=0.4,
        ramp_start=0.1,
        ramp_stop=0.6,
    )
    for budget in ("0.7", "0.5", "0.3")
    for method in ("priced", "paper")
]
