"""The images that a trained network is measured on."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from irp_jax import data
from irp_jax.config import EVALUATED_ON
from irp_jax.data import Dataset
from irp_jax.errors import UserError, unknown
from irp_jax.inference.network import TrainedNetwork

Images = Dataset | tuple[Any, Any] | str | None
"""What can be measured on: a data set or its name, (images, labels), or None for the data set of
the run."""


def images_of(
    network: TrainedNetwork,
    given: Images = None,
    *,
    data_dir: str | None = None,
    split: str = "test",
    warn: Callable[[str], None] = warnings.warn,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, H, W, C), uint8 or float in [0, 1], and labels (N,).

    Args:
        network: the network.
        given: a data set, its name or path, of which the images of `split` are taken; or (images,
            labels); or None for the data set of the run.
        data_dir: folder of downloaded sets. If None, the folder that the run used, if it is here.
        split: "test", or "validation" for the training images that the run held out.
        warn: called with a line if the test images have changed since the run. By default it is a
            Python warning.

    Raises:
        UserError: the data set is not here, its images or classes are not those of the network, or
            the images that the run held out are not known or not the same.
    """
    if split not in EVALUATED_ON:
        raise unknown("split", split, EVALUATED_ON)
    if isinstance(given, tuple) and len(given) == 2:
        images, labels = (np.asarray(part) for part in given)
        network.check_images(images)
        return images, labels
    if given is not None and not isinstance(given, str | Dataset):
        raise UserError(f"give a data set, or (images, labels), not {type(given).__name__}")
    trained = network.record["trained"]
    held_out = split == "validation"
    if held_out and not trained.get("held_out"):
        raise UserError("the run held out no images, or did not record which: use its test images")
    if isinstance(given, Dataset):
        found = given
    else:
        found = _loaded(network, given, data_dir, trained["validation"] if held_out else 0.0)
    name = found.name
    if held_out and data.split_digest(found.validation) != trained["held_out"]:
        raise UserError(
            f"the images held out of {name} are not those of the run, so it may have learned from "
            f"them: give the data set that it was trained on, or use its test images"
        )
    classes = len(network.class_names)
    if (found.image_shape, found.num_classes) != (network.image_shape, classes):
        raise UserError(
            f"{name} has images {found.image_shape} of {found.num_classes} classes, not "
            f"{network.image_shape} of {classes} as in training: choose another data set"
        )
    network.check_classes(found)
    tested = trained.get("tested")  # older versions did not record it
    same_name = Path(name).name == Path(trained["dataset"]).name
    if not held_out and same_name and tested and tested != data.split_digest(found.test):
        warn(f"the test images or labels of {name} have changed since the run")
    chosen = found.validation if held_out else found.test
    return chosen.images, chosen.labels


def _loaded(
    network: TrainedNetwork, given: str | None, data_dir: str | None, validation: float
) -> Dataset:
    trained = network.record["trained"]
    name = given or trained["dataset"]
    if given is None and name not in data.DATASETS and not Path(name).exists():
        raise UserError(
            f"it was trained on {name}, which is not here: give the path of it or another data set"
        )
    # This folder may be of another machine. It is used only if it exists, and is never made.
    there = trained["data_dir"]
    known = there is not None and Path(there).expanduser().is_dir()
    return data.load(
        name, data_dir=data_dir or (there if known else None), validation_fraction=validation,
        image_size=network.image_shape[0],
    )  # fmt: skip
