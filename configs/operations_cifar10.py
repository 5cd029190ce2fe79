r"""In-train pruning beside its published rule: 0.7, 0.5 and 0.3 of the operations, on CIFAR-10.

    bin/sweep --config=operations_cifar10 --results=results/operations_cifar10    # --seeds=0,1

The published table's budgets and networks, for five epochs of 20,000 images, or 10,000 where the
network is ResNet56: eight to eleven and twelve to nineteen minutes of one CPU core a run. Both
rules have the same images, epochs and defense, and the settings of configs/comparison.py, which
were chosen for short runs.
"""

from irp_jax.config import Config

configs = [
    Config(
        model=model,
        budget=budget,
        method=method,
        train_images=images,
        epochs=5,
        batch_size=64,
        epsilon_warmup=0.4,
        prune_start=0.1,
        prune_stop=0.6,
    )
    for model, images in (("resnet20", 20_000), ("resnet56", 10_000))
    for budget in ("0.3", "0.5", "0.7")
    for method in ("lagrangian", "hinge")
]
