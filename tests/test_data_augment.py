"""Tests of irp_jax.data.augmentation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irp_jax.data.augmentation import Augmentation, augment, to_float
from irp_jax.errors import UserError

KEY = jax.random.key(3)
# All levels of an image differ and are at least 1, so that 0 is padding or cutout.
IMAGES = jnp.asarray(np.arange(1, 1 + 6 * 7 * 3, dtype=np.uint8).reshape(1, 6, 7, 3)).repeat(64, 0)
POLICIES = [
    Augmentation(),
    Augmentation(crop_padding=2),
    Augmentation(flip=True),
    Augmentation(cutout=3),
    Augmentation(crop_padding=4, flip=True, cutout=2),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_shape_dtype_and_determinism(policy):
    result = augment(KEY, IMAGES, policy)
    chex.assert_equal_shape([result, IMAGES])
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, augment(KEY, IMAGES, policy))
    if policy != Augmentation():
        assert (result != augment(jax.random.key(4), IMAGES, policy)).any()


def test_the_default_policy_is_the_identity():
    np.testing.assert_array_equal(augment(KEY, IMAGES, Augmentation()), IMAGES)


def test_a_crop_is_a_window_of_the_padded_image():
    padding = 2
    margin = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(np.asarray(IMAGES[0]), margin)
    windows = {
        padded[row : row + 6, column : column + 7].tobytes(): (row, column)
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }
    images = IMAGES.repeat(8, 0)
    crops = np.asarray(augment(KEY, images, Augmentation(crop_padding=padding)))
    corners = {windows[crop.tobytes()] for crop in crops}  # KeyError: no such window
    assert len(corners) == len(windows) == 25


def test_a_flip_mirrors_about_half_of_the_images():
    flips = np.asarray(augment(KEY, IMAGES, Augmentation(flip=True)))
    mirrored = (flips == np.asarray(IMAGES)[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (flips == np.asarray(IMAGES)).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 16 <= mirrored.sum() <= 48


def test_cutout_blackens_one_square_and_nothing_else():
    side = 3
    cut = np.asarray(augment(KEY, IMAGES, Augmentation(cutout=side)))
    black = cut == 0
    np.testing.assert_array_equal(np.where(black, np.asarray(IMAGES), cut), IMAGES)
    for square in black:
        rows, columns, _ = (np.unique(axis) for axis in np.nonzero(square))
        assert square.sum() == len(rows) * len(columns) * 3
        assert 0 < len(rows) <= side and 0 < len(columns) <= side
        assert rows.max() - rows.min() == len(rows) - 1
        assert columns.max() - columns.min() == len(columns) - 1


def test_images_are_changed_independently():
    result = np.asarray(augment(KEY, IMAGES, Augmentation(crop_padding=4, flip=True)))
    assert len({image.tobytes() for image in result}) > 32


def test_one_compilation_serves_every_key():
    traced = jax.jit(chex.assert_max_traces(augment.__wrapped__, n=1), static_argnames="policy")
    for seed in range(3):
        traced(jax.random.key(seed), IMAGES, policy=POLICIES[-1])


@pytest.mark.parametrize("field", ["crop_padding", "cutout"])
def test_negative_sizes_are_refused(field):
    with pytest.raises(UserError, match=f"{field}.*-1"):
        Augmentation(**{field: -1})


def test_to_float():
    levels = jnp.arange(256).astype(jnp.uint8)
    values = to_float(levels)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.arange(256) / 255, rtol=1e-6)
    assert (values[0], values[-1]) == (0, 1)
    np.testing.assert_array_equal(np.round(np.asarray(values) * 255), levels)
