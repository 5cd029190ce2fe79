"""What an attack did to each image, from the files of `bin/evaluate --save-adversarial`.

`separating` compares two networks under one attack. The page shows the images on which one of them
holds and the other falls.

    found = separating("runs/A/found.npz", "runs/B/found.npz")
    first, second = found.holds
    print((first & ~second).sum(), "images on which only A is right under attack")
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irp_jax.errors import DAMAGED_NPZ, UserError
from irp_jax.report.checking import is_number

FEW = 8
"""Largest number of images of a kind that are read to be shown."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Some adversarial images of an evaluation.

    Attributes:
        name: name of the file.
        adversarial: (N, H, W, C), in [0, 1].
        natural: (N, H, W, C), the same images without perturbation; None if the file lacks them.
        labels: N names of the true classes.
        predictions: N names of the predicted classes.
    """

    name: str
    adversarial: np.ndarray
    natural: np.ndarray | None
    labels: tuple[str, ...]
    predictions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What an attack did to each of N images.

    Attributes:
        path: the file.
        attack: settings of the attack; None if the file is of an older version.
        network: SHA-256 of the network; None likewise.
        images: SHA-256 of natural images and labels; None if the file has no natural images.
        class_names: of all classes, as strings; None likewise.
        labels: (N,) true classes.
        natural: (N,) predicted classes of the natural images.
        predictions: (N,) predicted classes under the attack. Where it found no adversarial image,
            those of the natural images.
        fell_to: (N,) name of the attack that succeeded; "natural" if the natural image is
            misclassified; "" if the network holds.
    """

    path: Path
    attack: dict[str, Any] | None
    network: str | None
    images: str | None
    class_names: tuple[str, ...] | None
    labels: np.ndarray
    natural: np.ndarray
    predictions: np.ndarray
    fell_to: np.ndarray

    @property
    def holds(self) -> np.ndarray:
        """(N,) whether the network is right under the attack."""
        return self.fell_to == ""

    def called(self, classes: np.ndarray) -> tuple[str, ...]:
        """Returns the names of classes, or their numbers if the file has no names."""
        names = self.class_names
        return tuple(str(k) if names is None else names[k] for k in classes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Separating:
    """An image on which one network holds and the other falls.

    Attributes:
        place: its number among the attacked images, from 0.
        label: name of the true class.
        natural: (H, W, C) in [0, 1].
        adversarial: (H, W, C), the image that the network that falls misclassifies.
        predictions: of the first and the second network: names of the classes predicted for the
            natural image and under the attack.
    """

    place: int
    label: str
    natural: np.ndarray
    adversarial: np.ndarray
    predictions: tuple[tuple[str, str], tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Separation:
    """How one attack ended for two networks, on the same N images.

    Attributes:
        attack: its settings.
        natural: for each network, (N,) whether it is right on natural images.
        holds: for each network, (N,) whether it is right under the attack.
        only_first, only_second: some of the images on which only this network holds. Images that
            the other network misclassifies without an attack come last.
    """

    attack: dict[str, Any]
    natural: tuple[np.ndarray, np.ndarray]
    holds: tuple[np.ndarray, np.ndarray]
    only_first: tuple[Separating, ...]
    only_second: tuple[Separating, ...]


def separating(
    first: Outcomes | str | Path, second: Outcomes | str | Path, few: int = FEW
) -> Separation:
    """Compares two networks by the images that an attack breaks.

    Args:
        first, second: a file of each, or what `read` returned for it.
        few: largest number of images to return of each kind.

    Raises:
        UserError: a file cannot be read, or is of an older version; or they are of different
            attacks or images.
    """
    ours, theirs = (_read(one) for one in (first, second))
    for one in (ours, theirs):
        if one.attack is None or one.images is None:
            raise UserError(
                f"{one.path} does not record its attack or its natural images: write it again with "
                f"bin/evaluate --save-adversarial"
            )
    assert ours.attack is not None and theirs.attack is not None
    apart = [key for key in {**ours.attack, **theirs.attack}
             if ours.attack.get(key) != theirs.attack.get(key)]  # fmt: skip
    if apart:
        how = ", ".join(
            f"{key} {ours.attack.get(key)} and {theirs.attack.get(key)}" for key in apart
        )
        raise UserError(
            f"{ours.path} and {theirs.path} are of different attacks ({how}): attack both networks "
            f"with the same flags of bin/evaluate"
        )
    if ours.images != theirs.images:
        raise UserError(
            f"{ours.path} and {theirs.path} are of different images: attack both networks on the "
            f"same data set"
        )
    return Separation(
        attack=ours.attack,
        natural=(ours.natural == ours.labels, theirs.natural == theirs.labels),
        holds=(ours.holds, theirs.holds),
        only_first=_shown(ours.holds & ~theirs.holds, theirs, ours, theirs, few),
        only_second=_shown(theirs.holds & ~ours.holds, ours, ours, theirs, few),
    )


def _read(place: Outcomes | str | Path) -> Outcomes:
    if isinstance(place, Outcomes):
        return place
    try:
        found = read(Path(place))
    except DAMAGED_NPZ as error:
        raise UserError(f"{place} cannot be read: {error}") from error
    if found is None:
        raise UserError(f"{place} was not written by bin/evaluate --save-adversarial")
    return found


def _shown(
    chosen: np.ndarray, fallen: Outcomes, ours: Outcomes, theirs: Outcomes, few: int
) -> tuple[Separating, ...]:
    """Returns some of the chosen images, with the adversarial images of the network that falls."""
    places = np.flatnonzero(chosen)
    places = places[np.argsort(fallen.fell_to[places] == "natural", kind="stable")][:few]
    if not len(places):
        return ()
    try:
        with open(fallen.path, "rb") as whole, np.load(whole) as file:
            adversarial, natural = _pictures(file, places)
            if natural is None:
                raise ValueError("it has no natural images")
        labels = ours.called(ours.labels[places])
        pairs = [
            list(zip(*map(one.called, (one.natural[places], one.predictions[places])), strict=True))
            for one in (ours, theirs)
        ]
    except DAMAGED_NPZ as error:
        raise UserError(f"{fallen.path} cannot be read: {error}") from error
    return tuple(
        Separating(
            place=int(place), label=labels[at], natural=natural[at], adversarial=adversarial[at],
            predictions=(pairs[0][at], pairs[1][at]),
        )
        for at, place in enumerate(places)
    )  # fmt: skip


def read(path: Path) -> Outcomes | None:
    """Reads a file of `bin/evaluate --save-adversarial`; returns None for another file.

    Raises:
        one of `DAMAGED_NPZ`: the file is damaged.
    """
    # numpy leaves a damaged file open if it opens it itself.
    with open(path, "rb") as whole, np.load(whole) as file:
        if not {"images", "labels", "predictions", "broken_by"} <= set(file.files):
            return None
        labels, predictions, fell_to = (file[key] for key in ("labels", "predictions", "broken_by"))
        if not labels.shape == predictions.shape == fell_to.shape == (len(labels),):
            raise ValueError("its arrays have different lengths")
        if labels.dtype.kind not in "iu" or predictions.dtype.kind not in "iu":
            raise ValueError("its classes are no whole numbers")
        if np.minimum(labels, predictions).min(initial=0) < 0 or fell_to.dtype.kind != "U":
            raise ValueError("its classes or its names of attacks are not as expected")
        fell = fell_to == "natural"
        digest = None
        if "natural" in file.files:
            natural = file["natural"]
            content = hashlib.sha256(f"{natural.shape} {natural.dtype}".encode())
            content.update(natural.tobytes())
            content.update(labels.astype(np.int64).tobytes())
            digest = content.hexdigest()
        return Outcomes(
            path=path, attack=_attack(file), images=digest,
            network=str(file["network_sha256"]) if "network_sha256" in file.files else None,
            class_names=(
                tuple(map(str, file["class_names"])) if "class_names" in file.files else None
            ),
            labels=labels, predictions=predictions, fell_to=fell_to,
            # The attack leaves an image as it is that is misclassified without it.
            natural=np.where(fell, predictions, labels),
        )  # fmt: skip


def _attack(file: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    if "attack" not in file:
        return None
    found = json.loads(str(file["attack"]))
    needed = {"name", "images"} | ({"epsilon"} if found["name"] != "none" else set())
    if not needed <= set(found):
        raise ValueError(f"its attack lacks {', '.join(sorted(needed - set(found)))}")
    if not isinstance(found["name"], str) or not all(
        is_number(found[k]) for k in needed - {"name"}
    ):
        raise ValueError("its attack has values of a wrong type")
    return dict(found)


def _pictures(
    file: Mapping[str, np.ndarray], chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the chosen adversarial and natural images, which can be drawn.

    Raises:
        one of `DAMAGED_NPZ`: they cannot.
    """
    adversarial = file["images"][chosen]
    natural = file["natural"][chosen] / 255 if "natural" in file else None
    for pixels in (adversarial,) if natural is None else (adversarial, natural):
        if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
            raise ValueError(f"its images have the shape {pixels.shape}, not (N, H, W, 1 or 3)")
        if pixels.shape != adversarial.shape or not np.isfinite(pixels).all():
            raise ValueError("its images have different shapes, or pixels that are no numbers")
    return adversarial, natural


def examples(found: Outcomes) -> Examples | None:
    """Reads the first images that the attack broke; returns None if there are none.

    Raises:
        one of `DAMAGED_NPZ`: the file is damaged.
    """
    chosen = np.flatnonzero(~found.holds & (found.fell_to != "natural"))[:FEW]
    if not len(chosen):
        return None
    with open(found.path, "rb") as whole, np.load(whole) as file:
        adversarial, natural = _pictures(file, chosen)
        return Examples(
            name=found.path.name, adversarial=adversarial, natural=natural,
            labels=found.called(found.labels[chosen]),
            predictions=found.called(found.predictions[chosen]),
        )  # fmt: skip
