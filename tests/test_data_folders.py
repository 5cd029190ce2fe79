"""Folders of images: what is listed, how files are decoded, and what is refused."""

import shutil
import threading
import time

import numpy as np
import pytest
from folder_data import CLASSES, make_folder
from PIL import Image

from irp_jax import config as configs
from irp_jax import data
from irp_jax.data import folders
from irp_jax.data.decoding import decode
from irp_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


def test_a_folder_is_a_data_set(folder):
    (folder / "train" / "ant" / ".DS_Store").touch()
    found = data.load(str(folder), validation_fraction=0.25, image_size=16)
    assert (found.class_names, found.image_shape) == (CLASSES, (16, 16, 3))
    assert (len(found.train), len(found.validation), len(found.test)) == (27, 9, 12)
    assert np.bincount(found.train.labels).tolist() == [9, 9, 9]
    held = found.validation.images
    assert held.shape == (9, 16, 16, 3) and held.dtype == np.uint8
    # Each class is brightest in its own colour channel.
    for split in (found.train.loaded(), found.validation, found.test):
        assert (split.images.mean((1, 2)).argmax(-1) == split.labels).all()


def test_the_images_held_out_are_not_trained_on(folder):
    train, held_out, test, _ = data.open_folder(str(folder), 16, 0.25)
    every = {f"train/{path.parent.name}/{path.name}" for path in folder.glob("train/*/*")}
    assert {*train.paths, *held_out.paths} == every and len(every) == len(train) + len(held_out)
    assert all(path.startswith("test/") for path in test.paths)


def test_the_first_test_images_are_of_all_classes(tmp_path):
    folder = make_folder(tmp_path / "images", test=20)
    first, again = (data.load(str(folder), validation_fraction=0.5, image_size=8) for _ in "12")
    for split, same in ((first.test, again.test), (first.validation, again.validation)):
        assert set(split.labels[:10]) == {0, 1, 2}
        np.testing.assert_array_equal(split.images, same.images)


@pytest.mark.parametrize("size", [0, -1, 5000, 64.0, "64", True])
def test_a_wrong_size_is_refused(folder, size):
    with pytest.raises(UserError, match=f"got {size!r}"):
        data.load(str(folder), image_size=size)


def test_a_folder_may_bring_its_own_held_out_images(tmp_path):
    folder = make_folder(tmp_path / "images", splits=("train", "val", "test"))
    train, held_out, test, _ = data.open_folder(str(folder), 16, 0.25)
    assert (len(train), len(held_out), len(test)) == (36, 12, 12)
    assert all(path.startswith("val/") for path in held_out.paths)
    shutil.rmtree(folder / "test")
    _, _, test, _ = data.open_folder(str(folder), 16, 0.25)
    assert len(test) == 12 and all(path.startswith("val/") for path in test.paths)


def test_no_more_images_are_kept_in_memory_than_fit(folder, monkeypatch):
    monkeypatch.setattr(folders, "IN_MEMORY", 6 * 16 * 16 * 3)
    train, held_out, test, _ = data.open_folder(str(folder), 16, 0.5)
    assert (len(train), len(held_out), len(test)) == (30, 6, 6)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 9), pixels)


def coordinates(path):
    """Writes an image whose first two channels are the column and the row."""
    rows, columns = np.mgrid[0:160, 0:240].astype(np.uint8)
    Image.fromarray(np.stack([columns, rows, 0 * rows], -1)).save(path)
    return path


def test_the_centre_is_seven_eighths_of_the_shorter_side(tmp_path):
    found = decode(coordinates(tmp_path / "a.png"), 20).astype(int)
    pitch = 160 * 7 / 8 / 20
    expected = np.arange(20) * pitch + pitch / 2 - 0.5
    np.testing.assert_allclose(found[0, :, 0], 50 + expected, atol=1.5)
    np.testing.assert_allclose(found[:, 0, 1], 10 + expected, atol=1.5)


def test_random_crops_keep_a_quarter_of_the_area_or_more_and_no_edge_is_passed(tmp_path):
    path, shares = coordinates(tmp_path / "a.png"), []
    for seed in range(100):
        found = decode(path, 40, np.random.default_rng(seed)).astype(int)
        across, down = (np.ptp(found[..., axis]) * 40 / 39 for axis in (0, 1))
        shares.append(across * down / (160 * 240))
        assert 0.7 < across / down < 1.6
    assert 0.23 < min(shares) < 0.35 and 0.85 < max(shares) < 1.02


def test_a_large_photo_is_decoded_at_a_smaller_scale_with_the_same_result(tmp_path):
    smooth = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    large = Image.fromarray(smooth).resize((640, 480), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    large.save(tmp_path / "a.png")
    for random in (lambda: None, lambda: np.random.default_rng(3)):
        fast, exact = (decode(tmp_path / f"a.{kind}", 32, random()) for kind in ("jpg", "png"))
        np.testing.assert_allclose(fast.astype(int), exact.astype(int), atol=6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_images_of_all_kinds_become_colour_images(tmp_path, mode):
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    grey = Image.new("RGB", (12, 10), (90, 90, 90))
    (grey.quantize() if mode == "P" else grey.convert(mode)).save(name)
    found = decode(name, 8)
    assert found.shape == (8, 8, 3) and np.abs(found.astype(int) - 90).max() <= 3


def test_images_come_in_order_and_depend_on_their_key_only(folder):
    train, _, _, _ = data.open_folder(str(folder), 16, 0.0)
    keys = np.arange(36)[:, None]
    first = np.stack(list(train.read(keys)))
    order = np.random.default_rng(1).permutation(36)
    second = np.stack(list(train.take(order).read(keys[order], ahead=5)))
    np.testing.assert_array_equal(first[order], second)
    other = np.stack(list(train.read(keys + 100)))
    assert (first != other).any((1, 2, 3)).all()


def test_reading_ends_when_nobody_wants_more(folder):
    train, _, _, _ = data.open_folder(str(folder), 16, 0.0)
    before = threading.active_count()
    images = train.read()
    next(images)
    assert threading.active_count() > before
    images.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:  # each thread ends after the image that it reads
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_digest_is_of_names_and_sizes(folder):
    def digests():
        test = data.load(str(folder), image_size=16, validation_fraction=0.0).test
        return data.folder_digest(str(folder)), data.split_digest(test)

    before, image = digests(), folder / "test" / "ant" / "000.jpg"
    assert digests() == before
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    longer = digests()
    image.write_bytes(content)
    image.rename(image.with_name("other.jpg"))
    renamed = digests()
    assert all(len({a, b, c}) == 3 for a, b, c in zip(before, longer, renamed, strict=True))


def test_a_slash_after_the_name_changes_no_run(folder):
    names = {configs.run_name(configs.Config(dataset=f"{folder}{end}")) for end in ("", "/")}
    assert len(names) == 1


def remove(path):
    shutil.rmtree(path)


def keep_one(path):
    for name in CLASSES[1:]:
        shutil.rmtree(path / name)


def clear(path):
    for file in path.iterdir():
        file.unlink()


WRONG = {
    "no training images": ("train", remove, "no folder train"),
    "no test images": ("test", remove, "no folder test and no folder val"),
    "one class": ("train", keep_one, "only the class ant"),
    "no class": ("train", lambda path: [remove(path / name) for name in CLASSES], "is empty"),
    "class without test images": ("test/bee", remove, "has the class bee"),
    "class without training images": ("train/bee", remove, "has the class bee"),
    "empty class": ("train/bee", clear, "bee holds no images"),
    "another file": ("train/bee", lambda path: (path / "list.txt").touch(), "list.txt"),
    "a folder in a class": ("train/bee", lambda path: (path / "more.jpg").mkdir(), "more.jpg"),
    "a file in no class": ("train", lambda path: (path / "a.jpg").touch(), "a.jpg"),
}


@pytest.mark.parametrize("where, damage, said", WRONG.values(), ids=WRONG)
def test_a_folder_of_another_layout_is_refused(folder, where, damage, said):
    damage(folder / where)
    with pytest.raises(UserError, match=said) as error:
        data.load(str(folder), image_size=16)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_16_bits(path):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(path, format="PNG")


@pytest.mark.parametrize("name", ["001.png", "002.jpg"])
@pytest.mark.parametrize(
    "damage",
    [halve, in_16_bits, lambda path: path.write_text("text"), lambda path: path.write_bytes(b"")],
    ids=["half", "16 bits", "text", "empty"],
)
def test_a_damaged_image_is_named(folder, name, damage):
    damaged = folder / "train" / "bee" / name
    train, _, _, _ = data.open_folder(str(folder), 16, 0.0)
    damage(damaged)
    with pytest.raises(UserError, match=f"bee/{name}") as error:
        train.loaded()
    assert "\n" not in str(error.value)


def test_an_image_that_is_gone_is_named(folder):
    train, _, _, _ = data.open_folder(str(folder), 16, 0.0)
    (folder / "train" / "cat" / "000.jpg").unlink()
    with pytest.raises(UserError, match=r"cat/000\.jpg is gone"):
        train.loaded()
