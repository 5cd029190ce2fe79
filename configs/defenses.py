r"""ResNet20 on CIFAR-10 with every defense, for the same amount of work.

    bin/sweep --config=defenses --jobs=1 --results=results/defenses

The work is 12 pairs of a forward and a backward pass for each training image. A defense with three
passes per step gets two thirds of the epochs of one with two. The network is uniformly narrowed to
0.04 million parameters and trained on 18,000 images. Accuracies are of 5,000 held-out images, so
that the choice of the default does not use test images. The sweep takes an hour on two CPU cores.
"""

import dataclasses

from irp_jax.config import Config

PASSES = 12
PASSES_A_STEP = {
    ("n-fgsm", 1): 2,
    ("fgsm-rs", 1): 2,
    ("fgsm-consistency", 1): 3,
    ("fgsm-mep", 1): 3,
    ("pgd", 2): 3,
    ("pgd", 3): 4,
    ("gradalign", 1): 4,
    ("trades", 2): 4,
}
"""(defense, steps of its attack) -> passes per step."""

BASE = Config(
    model="resnet20",
    budget="0.04M",
    cost="params",
    method="width",
    batch_size=64,
    epsilon_warmup=0.4,
    train_images=18_000,
    validation=0.1,
    evaluate_on="validation",
)

configs = [
    dataclasses.replace(BASE, defense=name, attack_steps=steps, epochs=PASSES // passes)
    for (name, steps), passes in PASSES_A_STEP.items()
]
