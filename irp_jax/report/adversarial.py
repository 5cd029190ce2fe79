"""Writes the adversarial images of an attack to a file, which `report.outcomes` compares."""

import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from irp_jax import attacks, checkpoint, files, hosts
from irp_jax.data import to_float
from irp_jax.inference.network import TrainedNetwork
from irp_jax.report import plots

DRAWN = 8
"""Largest number of adversarial images in the picture."""


def save(
    path: Path,
    network: TrainedNetwork,
    images: np.ndarray,
    labels: np.ndarray,
    report: attacks.AttackReport,
    attack: dict[str, Any],
    mesh: Mesh,
) -> tuple[Path | None, int]:
    """Writes PATH.npz, and PATH.png with some adversarial images if there are any.

    Args:
        path: the .npz file. An existing file is replaced, and the picture beside it.
        network: the network that was attacked.
        images: (N, H, W, C) uint8.
        labels: (N,).
        report: what the attack found for them.
        attack: the description of the attack.
        mesh: the devices that predict.

    Returns:
        The picture, None if there is none; and how many images have another outcome when they are
        predicted in batches of another size, because of rounding.

    Raises:
        UserError: a file cannot be written.
    """
    predict = functools.partial(
        attacks.predict, Partial(network.apply, network.variables),
        batch_size=mesh.size * 64, mesh=mesh,
    )  # fmt: skip
    predicted = predict(report.adversarial).argmax(-1)
    arrays = {
        "images": report.adversarial,
        "natural": images,
        "class_names": np.array(network.class_names),
        "labels": labels,
        "predictions": predicted,
        "is_robust": report.is_robust,
        "broken_by": report.broken_by,
        "attack": np.array(json.dumps(attack)),
        "network_sha256": np.array(checkpoint.digest(network.variables)),
    }
    files.write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    apart = int(((predicted == labels) != report.is_robust).sum())
    chosen = np.flatnonzero((report.broken_by != "") & (report.broken_by != "natural"))[:DRAWN]
    if len(chosen):
        before = predict(np.asarray(to_float(jnp.asarray(images[chosen])))).argmax(-1)
    if not hosts.is_first():
        return None, apart
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # a picture of an earlier command shows other images
    if not len(chosen):
        return None, apart
    names = network.class_names
    drawn = plots.adversarial_picture(
        images[chosen] / 255,
        report.adversarial[chosen],
        [names[k] for k in before],
        [names[k] for k in predicted[chosen]],
    )
    plots.save(drawn, picture)
    return picture, apart
