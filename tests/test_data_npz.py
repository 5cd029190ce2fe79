"""Tests of irp_jax.data.npz."""

import numpy as np
import pytest

from irp_jax.data import load
from irp_jax.errors import UserError


def arrays(**changes):
    """Returns the arrays of a valid file with some replaced, or removed if the value is None."""
    random = np.random.default_rng(0)
    good = {
        "train_images": random.integers(0, 256, (12, 5, 7, 3), np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": random.integers(0, 256, (6, 5, 7, 3), np.uint8),
        "test_labels": np.arange(6) % 3,
    }
    return {name: array for name, array in (good | changes).items() if array is not None}


@pytest.fixture
def write(tmp_path):
    def save(contents):
        path = str(tmp_path / "mine.npz")
        np.savez(path, **contents)
        return path

    return save


def test_good_file(write):
    contents = arrays()
    dataset = load(write(contents), validation_fraction=0)
    np.testing.assert_array_equal(dataset.train.images, contents["train_images"])
    np.testing.assert_array_equal(dataset.test.labels, contents["test_labels"])
    assert dataset.train.labels.dtype == np.int32
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.image_shape == (5, 7, 3)


def test_own_validation_images_are_kept(write):
    own = {"validation_images": np.full((2, 5, 7, 3), 9, np.uint8), "validation_labels": [0, 1]}
    dataset = load(write(arrays(**own)), validation_fraction=0.5)
    assert len(dataset.train) == 12
    assert (dataset.validation.images == 9).all()


def test_grey_images_get_a_channel(write):
    grey = {
        "train_images": np.zeros((12, 5, 7), np.uint8),
        "test_images": np.zeros((6, 5, 7, 1), np.uint8),
    }
    assert load(write(arrays(**grey))).image_shape == (5, 7, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_round_to_the_level_they_came_from(write, dtype):
    contents = arrays()
    levels = contents["train_images"]
    scaled = (levels / 255).astype(dtype)
    dataset = load(write(arrays(train_images=scaled)), validation_fraction=0)
    np.testing.assert_array_equal(dataset.train.images, levels)


def test_class_names_allow_classes_without_images(write):
    dataset = load(write(arrays(class_names=np.array(["a", "b", "c", "d"]))))
    assert dataset.class_names == ("a", "b", "c", "d")


IMAGES = arrays()["train_images"]
FLOATS = IMAGES / 255
BAD = {
    "missing names": ({"train_labels": None, "test_images": None}, "lacks train_labels, test_im"),
    "half a validation split": ({"validation_labels": np.arange(3)}, "lacks validation_images"),
    "object labels": ({"train_labels": np.array([None] * 12)}, "train_labels is an object array"),
    "object images": ({"train_images": np.array([None] * 12)}, "train_images is an object array"),
    "label too large": ({"test_labels": np.full(6, 7)}, "test_labels holds 7"),
    "label beyond the names": ({"class_names": np.array(["a", "b"])}, "train_labels holds 2"),
    "negative label": ({"train_labels": np.arange(12) - 1}, "train_labels holds -1"),
    "gap in labels": ({"train_labels": np.arange(12) % 3 * 2}, "holds 2 but no 1"),
    "labels from one": ({"train_labels": np.arange(12) % 3 + 1}, "holds 1 but no 0"),
    "huge label": ({"train_labels": np.full(12, 2**40)}, "holds 1099511627776"),
    "one class": ({"train_labels": np.zeros(12, int)}, "at least two classes"),
    "float labels": ({"train_labels": np.arange(12) / 2}, "train_labels is float64"),
    "bool labels": ({"train_labels": np.arange(12) < 6}, "train_labels is bool"),
    "one-hot labels": ({"train_labels": np.eye(12, dtype=int)}, "train_labels has shape (12, 12)"),
    "mixed shapes": ({"test_images": np.zeros((6, 5, 8, 3), np.uint8)}, "5 x 8 x 3 but train"),
    "mixed channels": ({"test_images": np.zeros((6, 5, 7), np.uint8)}, "5 x 7 x 1 but train"),
    "channels first": ({"train_images": np.zeros((12, 3, 5, 7), np.uint8)}, "C 1 or 3"),
    "flat images": ({"train_images": np.zeros((12, 105), np.uint8)}, "shape (12, 105)"),
    "no images": ({"train_images": IMAGES[:0], "train_labels": np.arange(0)}, "which is empty"),
    "no pixels": ({"train_images": IMAGES[:, :0]}, "which is empty"),
    "lengths differ": ({"train_labels": np.arange(11) % 3}, "12 train_images but 11 train_labels"),
    "nan": ({"train_images": np.where(FLOATS > 0.5, np.nan, FLOATS)}, "NaN or infinity"),
    "infinity": ({"test_images": np.full((6, 5, 7, 3), np.inf)}, "test_images holds NaN or inf"),
    "floats to 255": ({"train_images": FLOATS * 255}, "must be in [0, 1]"),
    "negative floats": ({"train_images": FLOATS - 0.5}, "must be in [0, 1]"),
    "int64 images": ({"train_images": IMAGES.astype(np.int64)}, "train_images is int64"),
    "complex images": ({"train_images": FLOATS * 1j}, "train_images is complex128"),
    "text images": ({"train_images": np.full((12, 5, 7, 3), "x")}, "train_images is <U1"),
    "numbered class names": ({"class_names": np.arange(3)}, "class_names is int64"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arrays(write, changes, message):
    path = write(arrays(**changes))
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rounding_noise_beyond_the_unit_range_is_cut_off(write):
    noisy = np.where(FLOATS == 1, np.nextafter(np.float32(1), 2), FLOATS.astype(np.float32))
    noisy = np.where(noisy == 0, np.float32(-1e-7), noisy)
    assert noisy.min() < 0 and noisy.max() > 1
    cleaned = load(write(arrays(train_images=noisy)), validation_fraction=0)
    np.testing.assert_array_equal(cleaned.train.images, IMAGES)
    with pytest.raises(UserError, match=r"floats in \[0, 1\.00001\]"):
        load(write(arrays(train_images=FLOATS * 1.00001)))


@pytest.mark.parametrize("images", [FLOATS / 255, (FLOATS > 0.5).astype(np.uint8)])
def test_images_that_are_black_are_told(write, caplog, images):
    load(write(arrays()))
    assert caplog.text == ""
    load(write(arrays(train_images=images)))
    assert "train_images is black" in caplog.text and "test_images is" not in caplog.text


def _truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # within the first array's data, which the zip has a checksum of
    path.write_bytes(bytes(content))


def _single_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


DAMAGE = {
    "truncated": _truncated,
    "flipped byte": _flipped,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a zip file"),
    "zip magic alone": lambda path: path.write_bytes(b"PK\x03\x04"),
    "single array": _single_array,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files(write, tmp_path, damage):
    path = write(arrays())
    damage(tmp_path / "mine.npz")
    with pytest.raises(UserError) as caught:
        load(path)
    assert path in str(caught.value)
    assert "numpy.savez" in str(caught.value)


def test_a_directory_is_taken_for_a_folder_of_images(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="no folder train"):
        load(str(tmp_path / "folder.npz"))
