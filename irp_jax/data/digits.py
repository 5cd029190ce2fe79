"""The handwritten digits of scikit-learn: 1,797 grey images of 8 x 8 pixels, no download."""

import numpy as np
from sklearn import datasets

from irp_jax.data.dataset import hold_out
from irp_jax.data.splits import Split

TEST_SIZE = 360
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Loads the digits with their fixed, stratified split.

    Returns:
        1,437 training images, 360 test images, both ``(N, 8, 8, 1)`` uint8, and the class names.
        The grey levels 0 to 16 are scaled linearly to 0 to 255 and rounded.

    References:
        E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (the copy that ships inside scikit-learn).
    """
    raw = datasets.load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = Split(images=images, labels=raw.target.astype(np.int32))
    train, test = hold_out(whole, TEST_SIZE)
    return train, test, CLASS_NAMES
