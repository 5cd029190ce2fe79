"""A small folder of images, as a user would make it."""

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def make_folder(root, *, train=12, test=4, size=20, splits=("train", "test")):
    """Writes `train` and `test` images of three classes, of different sizes and colours."""
    random = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(train if split == "train" else test):
                height, width = size + random.integers(0, 8, 2)
                pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., label] += 100
                suffix = "png" if number % 4 == 1 else "jpg"
                Image.fromarray(pixels).save(folder / f"{number:03}.{suffix}")
    return root
