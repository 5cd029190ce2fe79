"""Natural and adversarial images with their difference."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def adversarial_picture(
    natural: np.ndarray,
    adversarial: np.ndarray,
    before: Sequence[str],
    after: Sequence[str],
) -> Figure:
    """Draws a grid of images: natural, adversarial and their difference, with the predictions.

    Args:
        natural: (N, H, W, C) in [0, 1], C 1 or 3.
        adversarial: the same shape.
        before: N predictions for the natural images.
        after: N predictions for the adversarial ones.
    """
    change = adversarial - natural
    largest = np.maximum(np.abs(change).max(axis=(1, 2, 3), keepdims=True), 1e-6)
    rows = {
        "natural": natural,
        "adversarial": adversarial,
        "difference": 0.5 + change / largest / 2,
    }
    count = len(natural)
    figure = Figure((1.3 * count + 0.7, 4.4), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for row, (title, images) in enumerate(rows.items()):
        axes[row][0].set_ylabel(title)
        for column, axis in enumerate(axes[row]):
            axis.imshow(images[column], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row < 2:
                axis.set_title((before, after)[row][column], fontsize=9)
            else:
                axis.set_xlabel(f"x {0.5 / float(largest[column].item()):.0f}", fontsize=9)
    return figure
