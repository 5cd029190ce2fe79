"""Files of `bin/evaluate --save-adversarial` for two runs, as input for tests of the page."""

import json

import numpy as np
from run_results import result

COUNT, CLASSES = 40, 4
ATTACK = {"name": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 10, "images": COUNT}


def outcomes(seed):
    """Returns the arrays of a file of bin/evaluate for a network that falls at random."""
    draws, same = np.random.default_rng(seed), np.random.default_rng(0)
    natural = same.integers(0, 256, (COUNT, 4, 4, 3)).astype(np.uint8)
    labels = same.integers(0, CLASSES, COUNT)
    broken_by = draws.choice(["", "pgd", "natural"], COUNT, p=[0.5, 0.4, 0.1])
    wrong = (labels + draws.integers(1, CLASSES, COUNT)) % CLASSES
    moved = (natural / 255 + 0.01 * seed).astype(np.float32).clip(0, 1)
    is_moved = (broken_by == "pgd")[:, None, None, None]
    return {
        "images": np.where(is_moved, moved, natural / 255), "natural": natural, "labels": labels,
        "predictions": np.where(broken_by == "", labels, wrong), "broken_by": broken_by,
        "class_names": np.array([f"class {n}" for n in range(CLASSES)]),
        "attack": np.array(json.dumps(ATTACK)), "network_sha256": np.array(f"network {seed}"),
    }  # fmt: skip


def two_runs(parent):
    """Makes the folders run1 and run2 in a folder, each with results and a file of outcomes.

    Returns:
        The path of the file and its arrays, for each.
    """
    found = []
    for seed in (1, 2):
        folder, arrays = parent / f"run{seed}", outcomes(seed)
        folder.mkdir()
        one = {**result(seed, 0.9), "network_sha256": f"network {seed}"}
        (folder / "results.json").write_text(json.dumps(one))
        np.savez(folder / "found.npz", **arrays)
        found.append((folder / "found.npz", arrays))
    return found
