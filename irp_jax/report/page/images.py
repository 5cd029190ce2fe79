"""Images on the HTML page, as data URIs."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib.image import imsave

from irp_jax.report.outcomes import Examples, Separating, Separation
from irp_jax.report.page.cells import measurement


def grid(examples: Examples) -> dict[str, Any]:
    """Returns the images of a grid as data URIs, with true and predicted classes."""
    shown = []
    for place, (true, said) in enumerate(zip(examples.labels, examples.predictions, strict=True)):
        adversarial = examples.adversarial[place]
        cells = [(f"adversarial image of {true}, classified as {said}", _png(adversarial))]
        if examples.natural is not None:
            natural = examples.natural[place]
            change = adversarial - natural
            largest = max(float(np.abs(change).max()), 1e-6)
            stronger = f"difference, multiplied by {0.5 / largest:.0f}"
            cells.insert(0, (f"natural image of {true}", _png(natural)))
            cells.append((stronger, _png(0.5 + change / largest / 2)))
        shown.append({"true": true, "said": said, "images": cells})
    return {"name": examples.name, "grid": shown}


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    pixels = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
    imsave(file, np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


KINDS = {
    "both": (True, True), "only {0}": (True, False), "only {1}": (False, True),
    "neither": (False, False),
}  # fmt: skip
"""Which of two networks is right -> whether each of them is."""


def gallery(first: str, second: str, found: Separation) -> dict[str, Any]:
    """Returns the counts and images that separate two networks, as the page shows them.

    Args:
        first, second: names of the networks.
        found: how the attack ended for them.
    """
    name = found.attack["name"]
    counts = [
        (kind.format(first, second), _count(found.natural, right), _count(found.holds, right))
        for kind, right in KINDS.items()
    ]
    parts = [
        {"name": holding, "cells": [_beside(one, (first, second)) for one in shown]}
        for holding, shown in ((first, found.only_first), (second, found.only_second))
    ]
    how = measurement("natural" if name == "none" else name, found.attack)
    return {"attack": f"{name}, {how}", "counts": counts, "parts": parts}


def _count(networks: tuple[np.ndarray, np.ndarray], right: tuple[bool, bool]) -> int:
    first, second = networks
    return int(((first == right[0]) & (second == right[1])).sum())


def _beside(one: Separating, names: tuple[str, str]) -> dict[str, Any]:
    """Returns an image without and with the attack, and what both networks say to it."""
    return {
        "true": one.label,
        "said": list(zip(names, one.predictions, strict=True)),
        "images": [
            (f"natural image of {one.label}", _png(one.natural)),
            (f"adversarial image of {one.label}", _png(one.adversarial)),
        ],
    }
