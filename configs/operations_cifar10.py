r"""In-train pruning beside its published rule: 0.7, 0.5 and 0.3 of the operations, on CIFAR-10.

    bin/sweep --config=operations_cifar10 --results=results/operations_cifar10

The published table's networks and budgets, sized for two CPU cores: 20,000 images for ResNet20,
10,000 for ResNet56, five epochs each. Both rules have the same images, epochs and
defence, and the settings of configs/comparison.py, chosen for short runs.
"""

from irp_jax.config import Config

IMAGES = {"resnet20": 20_000, "resnet56": 10_000}

configs = [
    Config(
        model=model,
        budget=budget,
        method=method,
        train_images=images,
        epochs=5,
        batch_size=64,
        epsilon_warmup=0.4,
        ramp_start=0.1,
        ramp_stop=0.6,
    )
    for model, images in IMAGES.items()
    for budget in ("0.7", "0.5", "0.3")
    for method in ("priced", "paper")
]
