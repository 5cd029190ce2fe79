r"""In-train pruning beside its published rule: 0.7, 0.5 and 0.3 of the operations, on CIFAR-10.

    bin/sweep --config=operations_cifar10 --results=results/operations_cifar10    # --seeds=0,1

The published table's budgets and networks, on 20,000 images for five epochs: some ten minutes of
one CPU core a run of ResNet20, half an hour one of ResNet56. Both rules have the same images,
epochs and defence, and the settings of configs/comparison.py, which were chosen for short runs.
"""

from irp_jax.config import Config

configs = [
    Config(
        model=model,
        budget=budget,
        method=method,
        train_images=20_000,
        epochs=5,
        batch_size=64,
        epsilon_warmup=0.4,
        ramp_start=0.1,
        ramp_stop=0.6,
    )
    for model in ("resnet20", "resnet56")
    for budget in ("0.3", "0.5", "0.7")
    for method in ("priced", "paper")
]
