"""Tests of irp_jax.data.registry and irp_jax.data.digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from irp_jax import data
from irp_jax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_are_scikit_learns(digits):
    raw = load_digits()
    reference = {
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), label)
        for image, label in zip(raw.images, raw.target, strict=True)
    }
    splits = (digits.train, digits.validation, digits.test)
    found = {
        (image.tobytes(), label)
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert found == reference
    assert sum(map(len, splits)) == len(raw.target) == 1797


def test_digits_splits_are_disjoint_and_stratified(digits):
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split) for split in splits] == [1408, 29, 360]
    images = [{image.tobytes() for image in split.images} for split in splits]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    whole = np.bincount(load_digits().target) / 1797
    for split in (digits.train, digits.test):
        shares = np.bincount(split.labels) / len(split)
        np.testing.assert_allclose(shares, whole, atol=1.5 / len(split))


def test_digits_layout(digits):
    assert (digits.image_shape, digits.num_classes) == ((8, 8, 1), 10)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255


def test_validation_comes_from_training_alone(digits):
    none = data.load("digits", validation_fraction=0)
    assert len(none.validation) == 0
    assert none.validation.images.shape == (0, 8, 8, 1)
    assert len(none.train) == 1437
    np.testing.assert_array_equal(none.test.images, digits.test.images)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar-10", "did you mean 'cifar10'?"),
        ("CIFAR10", "did you mean 'cifar10'?"),
        ("svhn", "did you mean 'svhn_cropped'?"),
        ("fashion-mnist", "did you mean 'fashion_mnist'?"),
        ("missing.npz", "no file missing.npz"),
        ("some/folder", "no folder some/folder"),
        ("array.npy", "is not an .npz file"),
        ("", "unknown dataset ''"),
    ],
)
def test_names_that_are_no_dataset(name, hint):
    for function in (data.load, data.check_name):
        with pytest.raises(UserError) as caught:
            function(name)
        assert hint in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_bad_fraction_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="validation fraction"):
        data.load("cifar10", data_dir="/nonexistent", validation_fraction=1.5)


def test_digits_are_never_mirrored():
    for name in ("digits", "mnist", "svhn_cropped"):
        assert not data.DATASETS[name].flip


def test_default_augmentation_of_a_users_images():
    assert data.default_augmentation("mine.npz", (24, 32, 3)) == data.Augmentation()
    large = data.default_augmentation("mine.npz", (25, 32, 3))
    assert large == data.Augmentation(crop_padding=4)
    assert data.default_augmentation("cifar10", (32, 32, 3)).flip
