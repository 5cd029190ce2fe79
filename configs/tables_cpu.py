r"""Rows of configs/tables.py for the larger networks, CIFAR-10, sized for CPUs: VGG16 and ResNet18.

    bin/sweep --config=tables_cpu --results=results/tables_cpu

A tenth of the parameters, in-train and uniformly narrow from the start, on 10,000 images for eight
epochs. So few epochs want small batches and a long warm-up of the radius (configs/comparison.py).
Pruning ends after a quarter of training, as these networks are slow while they are large: some 20
images a second on a CPU core.
"""

from irp_jax.config import Config

configs = [
    Config(
        model=model,
        budget="0.1",
        cost="params",
        method=method,
        train_images=10_000,
        epochs=8,
        batch_size=64,
        epsilon_warmup=0.4,
        ramp_start=0.05,
        ramp_stop=0.25,
    )
    for method in ("priced", "width")
    for model in ("vgg16", "resnet18")
]
