r"""Every row of the published tables, CIFAR-10: 23 networks of 60 epochs. It needs an accelerator.

    bin/sweep --config=tables --seeds=0,1,2 --attacks=pgd-50-10,autoattack --results=mine

Several small networks at once (--jobs=6) use a GPU better than one.

The first rows are those of the original method (Vemparala et al. 2021). Their budgets are millions
of parameters or fractions of the MACs. ResNet56 with weight masks has radius 4/255. The other rows
are those of the Adversarial Pruning Benchmark (Piras et al. 2024), whose budgets are fractions of
the parameters. The first two rows are measured (docs/results.md).

The peak learning rate is twice the default. It had the best sum of accuracies of eleven recipes for
0.04 M on held-out images, by a difference within chance (results/trials_recipe). Pruning until 30 %
of training was not tried there; it is between two values that were. VGG16 and ResNet18 need
gradient clipping, at least in short runs (configs/tables_cpu.py).
"""

import dataclasses

from irp_jax.config import Config

BASE = Config(epochs=60, learning_rate=0.2, prune_stop=0.3)


def rows(model: str, granularity: str, cost: str, *budgets: str, **more: float) -> list[Config]:
    """Returns the configs of one network at several budgets."""
    return [
        dataclasses.replace(
            BASE, model=model, granularity=granularity, cost=cost, budget=budget, **more
        )
        for budget in budgets
    ]


configs = [
    *rows("resnet20", "channel", "params", "0.04M", "0.16M"),
    *rows("resnet20", "channel", "macs", "0.7", "0.5", "0.3"),
    *rows("resnet56", "channel", "macs", "0.7", "0.5", "0.3"),
    *rows("resnet56", "weight", "params", "0.13M", epsilon=4 / 255),
    *rows("vgg16", "channel", "params", "0.76M", "5.51M", clip=1.0),
    *rows("vgg16", "channel", "params", "0.5", "0.25", "0.1", clip=1.0),
    *rows("vgg16", "weight", "params", "0.1", "0.05", "0.01", clip=1.0),
    *rows("resnet18", "channel", "params", "0.5", "0.25", "0.1", clip=1.0),
    *rows("resnet18", "weight", "params", "0.1", "0.05", "0.01", clip=1.0),
]
