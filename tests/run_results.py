"""Results of small runs, as input for the tests of tables and plots."""

from irp_jax import config as configs

ROW = {
    "epoch": 1, "loss": 1.5, "train_accuracy": 0.4, "natural": 0.5, "fgsm": 0.4, "pgd": 0.3,
    "cost_ratio": 0.16, "frozen": True, "images_per_s": 100.0, "seconds": 3.0,
}  # fmt: skip
LAYER = {
    "layer": "stem", "channels_in": 3, "channels_out": 4, "dense_channels_in": 3,
    "dense_channels_out": 16, "macs": 10, "dense_macs": 40, "params": 9, "dense_params": 36,
}  # fmt: skip

CONFIG = configs.suited("digits")


def result(seed, pgd, budget=0.16):
    return {
        "model": "resnet20", "dataset": "digits", "method": "lagrangian", "seed": seed,
        "budget": {"kind": "macs", "target": budget},
        "cost": {"macs": 16, "dense_macs": 100, "macs_ratio": budget, "params": 20,
                 "dense_params": 100, "params_ratio": 0.2},
        "accuracy": {"natural": 0.99, "pgd": pgd}, "epochs": 4,
        "attack": {"name": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 10, "restarts": 1,
                   "images": 360},
        "wall_time_s": 120.0, "passes_per_image": 8.0, "rollbacks": [], "identity": {},
        "keep_counts": {"stem": 4},
        "defense": CONFIG.defense,
        "config": configs.settings(CONFIG) | {"budget": str(budget), "seed": seed},
        "history": [ROW, {**ROW, "epoch": 2}], "layers": [LAYER],
    }  # fmt: skip
