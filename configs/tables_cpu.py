r"""Rows of configs/tables.py for the larger networks, CIFAR-10, sized for CPUs: VGG16 and ResNet18.

    bin/sweep --config=tables_cpu --results=results/tables_cpu

A tenth of the parameters, in-train and uniformly narrow from the start, on 10,000 images for eight
epochs. So few epochs want small batches and a long warm-up of the radius (configs/comparison.py).
Pruning ends after a quarter of training, as these networks are slow while they are large: 50 and 28
images a second on a CPU core. VGG16 wants short gradients: without, its loss was 3.3 in the first
epoch, and it had learnt nothing when it was cut, nor an epoch later (results/unclipped_vgg16.json).
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
        clip=clip,
        epsilon_warmup=0.4,
        ramp_start=0.05,
        ramp_stop=0.25,
    )
    for method in ("priced", "width")
    for model, clip in (("vgg16", 1.0), ("resnet18", 0.0))
]
