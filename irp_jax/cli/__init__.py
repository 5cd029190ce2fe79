"""Command lines: flags become a typed object, one call does the work.

`irp-jax NAME` and, in a checkout, `bin/NAME` run the function NAME of the module NAME.
"""

COMMANDS = {
    "train": "train, prune and harden a network in one run",
    "evaluate": "attack a trained network",
    "sweep": "many runs, each trained, attacked and collected",
    "report": "tables and pictures from saved results",
    "describe": "the channels of a network, its layers and their cost",
    "publish": "a trained network with its model card, to hand on",
    "bench": "time a training step, beside PyTorch",
}
