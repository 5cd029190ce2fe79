r"""Which defense gives most for the same work: a small ResNet20 on CIFAR-10, by all of them.

    bin/sweep --config=defenses --jobs=1 --results=results/defenses

Work is forward and backward passes: 12 for each training image, so that a defense of three passes a
step has two thirds of the epochs that one of two has. The network is the uniformly narrow one of
0.04 million parameters, trained on 18,000 images, and accuracies are of 5,000 others held out: the
test images have no say in what the default is. An hour on two CPU cores.
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
"""(defense, steps of its attack) -> passes a step."""

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
