r"""In-train pruning and its published rule at 0.7, 0.5 and 0.3 of the MACs, on CIFAR-10.

    bin/sweep --config=operations_cifar10 --results=results/operations_cifar10    # --seeds=0,1

Budgets and networks are those of the published table. ResNet20 trains for five epochs of 20,000
images, which takes eight to eleven minutes of one CPU core. ResNet56 trains for five epochs of
10,000 images, which takes twelve to nineteen minutes. Both rules have the same images, epochs and
defense, and the settings of configs/comparison.py, which were chosen for short runs.
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
