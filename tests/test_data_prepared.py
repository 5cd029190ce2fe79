"""Tests of irp_jax.data.tfds_loader, official and fetch, on tiny sets in the official formats."""

import dataclasses
import gzip
import hashlib
import io
import json
import logging
import struct
import sys
import types

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from official_files import (
    CIFAR10,
    FILES,
    SIZES,
    cifar10_files,
    cifar10_members,
    cifar100_files,
    labels,
    mnist_files,
    pixels,
    tar_gz,
)

from irp_jax.data import load, tfds_loader
from irp_jax.data.official import OFFICIAL
from irp_jax.errors import UserError


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Makes the package expect tiny sets, and blocks the network."""
    for name, official in OFFICIAL.items():
        monkeypatch.setitem(OFFICIAL, name, dataclasses.replace(official, sizes=SIZES))

    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("unreachable")

    monkeypatch.setattr(requests, "get", unreachable)
    monkeypatch.setattr(requests.Session, "get", unreachable)


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def as_set(split):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(split.images, split.labels, strict=True)
    }


def test_a_half_imported_tensorflow_datasets_is_one_line(monkeypatch, tmp_path):
    # What `import tensorflow_datasets` gives if tensorflow-metadata does not fit protobuf.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.ModuleType("tfds"))
    monkeypatch.delitem(sys.modules, tfds_loader.__name__)
    with pytest.raises(UserError, match="tensorflow-metadata<1"):
        load("cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_official_files_become_a_prepared_set(name, tmp_path):
    files, shape, num_classes = FILES[name]
    put(tmp_path, files())
    dataset = load(name, data_dir=str(tmp_path), validation_fraction=0)
    for split in SIZES:
        loaded = getattr(dataset, split)
        assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int32
        expected = pixels(split, shape), labels(split, num_classes)
        if OFFICIAL[name].id_format:
            np.testing.assert_array_equal(loaded.images, expected[0])
            np.testing.assert_array_equal(loaded.labels, expected[1])
        else:
            assert len(loaded) == SIZES[split]
            pairs = zip(*expected, strict=True)
            assert as_set(loaded) == {(image.tobytes(), int(label)) for image, label in pairs}
    assert dataset.num_classes == num_classes
    assert "tensorflow" not in sys.modules

    for file in files():
        (tmp_path / file).unlink()
    again = load(name, data_dir=str(tmp_path), validation_fraction=0)
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert again.class_names == dataset.class_names


@pytest.mark.parametrize("folder", ["a[1]*?", "a[0:1]"])
def test_a_set_is_prepared_and_read_in_a_folder_of_any_name(folder, tmp_path):
    put(tmp_path / folder, cifar10_files())
    for _ in range(2):
        dataset = load("cifar10", data_dir=str(tmp_path / folder), validation_fraction=0)
        assert [len(getattr(dataset, split)) for split in SIZES] == list(SIZES.values())


def test_class_names(tmp_path):
    put(tmp_path, cifar10_files())
    assert load("cifar10", data_dir=str(tmp_path)).class_names == tuple(
        f"kind{n}" for n in range(10)
    )
    put(tmp_path, cifar100_files())
    assert load("cifar100", data_dir=str(tmp_path)).class_names[99] == "fine99"


def test_the_prepared_set_is_the_stock_one(tmp_path):
    put(tmp_path, cifar10_files())
    load("cifar10", data_dir=str(tmp_path))
    source = tfds.data_source("cifar10", data_dir=str(tmp_path), split="train", download=False)
    stock = tfds.builder_cls("cifar10")
    assert (tmp_path / "cifar10" / str(stock.VERSION)).is_dir()
    example = source[0]
    assert set(example) == {"id", "image", "label"}
    index = int(example["id"].decode().removeprefix("train_"))
    np.testing.assert_array_equal(example["image"], pixels("train", (32, 32, 3))[index])
    assert example["label"] == labels("train")[index]


@pytest.mark.parametrize("folder", ["", "downloads/manual", "downloads/manual/cifar10"])
def test_where_an_official_file_may_lie(tmp_path, folder):
    put(tmp_path / folder, cifar10_files())
    assert len(load("cifar10", data_dir=str(tmp_path)).test) == 10


def test_the_environment_names_the_default_place(tmp_path, monkeypatch):
    put(tmp_path, cifar10_files())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(load("cifar10").test) == 10


def test_another_checksum_is_accepted_with_one_warning_naming_both(tmp_path, caplog):
    files = cifar10_files()
    put(tmp_path, files)
    with caplog.at_level(logging.WARNING, "irp_jax"):
        load("cifar10", data_dir=str(tmp_path))
    (record,) = (record for record in caplog.records if record.name.startswith("irp_jax"))
    published = tfds.builder_cls("cifar10").url_infos[OFFICIAL["cifar10"].urls[0]].checksum
    assert hashlib.sha256(files[CIFAR10]).hexdigest() in record.getMessage()
    assert published in record.getMessage()


def damaged_cifar10(kind):
    members = cifar10_members()
    batch = "cifar-10-batches-bin/data_batch_3.bin"
    if kind == "short":
        members[batch] = members[batch][:-3073]
    elif kind == "long":
        members[batch] = members[batch] * 9
    elif kind == "label":
        members[batch] = b"\x0a" + members[batch][1:]
    elif kind == "missing":
        del members[batch]
    elif kind == "names":
        members["cifar-10-batches-bin/batches.meta.txt"] = b"one\ntwo\n"
    content = tar_gz(members)
    return {"truncated": content[: len(content) // 2], "text": b"<html>not found</html>"}.get(
        kind, content
    )


@pytest.mark.parametrize(
    "kind", ["short", "long", "label", "missing", "names", "truncated", "text"]
)
def test_an_archive_with_wrong_contents_is_refused_and_leaves_nothing(tmp_path, kind):
    put(tmp_path, {CIFAR10: damaged_cifar10(kind)})
    for _ in range(2):  # the second try must not find an incomplete set
        with pytest.raises(UserError, match="is not the official cifar10") as caught:
            load("cifar10", data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cifar10").glob("*"))


def test_hostile_members_are_not_unpacked(tmp_path):
    members = {"../escaped": b"x", "/tmp/escaped-irp": b"x", **cifar10_members()}
    put(tmp_path / "data", {CIFAR10: tar_gz(members)})
    load("cifar10", data_dir=str(tmp_path / "data"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("broken", ["magic", "shape", "short", "long", "label"])
def test_damaged_idx_files(tmp_path, broken):
    files = mnist_files()
    name = "t10k-labels-idx1-ubyte.gz"
    raw = gzip.decompress(files[name])
    files[name] = gzip.compress(
        {
            "magic": b"\x01" + raw[1:],
            "shape": raw[:7] + b"\x0b" + raw[8:],
            "short": raw[:-1],
            "long": raw + b"\x00",
            "label": raw[:-1] + b"\x0a",
        }[broken]
    )
    put(tmp_path, files)
    with pytest.raises(UserError, match="is not the official mnist"):
        load("mnist", data_dir=str(tmp_path))


@pytest.mark.parametrize("content", [b"", bytes(300), b"<html>404 Not Found</html>"])
def test_damaged_matlab_files(tmp_path, content):
    put(tmp_path, {"train_32x32.mat": content, "test_32x32.mat": content})
    with pytest.raises(UserError, match="is not the official svhn_cropped") as caught:
        load("svhn_cropped", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_of_another_set_under_the_same_name_are_passed_over(tmp_path, monkeypatch):
    files = mnist_files()
    put(tmp_path, files)
    publish(monkeypatch, "mnist", files)
    with pytest.raises(UserError, match="cannot download fashion_mnist"):
        load("fashion_mnist", data_dir=str(tmp_path))
    assert len(load("mnist", data_dir=str(tmp_path)).test) == 10


@pytest.mark.parametrize("name", FILES)
def test_without_network_one_line_says_what_to_put_where(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load(name, data_dir=str(tmp_path / "none"))
    message = str(caught.value)
    assert "\n" not in message
    for url in OFFICIAL[name].urls:
        base, file = url.rsplit("/", 1)
        assert base in message and file in message
    assert str(tmp_path / "none") in message
    assert "--data-dir" in message and "--dataset=digits" in message
    assert not (tmp_path / "none").exists()


def publish(monkeypatch, name, files):
    """Replaces the published checksums by those of these files."""
    for file, url in OFFICIAL[name].files.items():
        info = tfds.download.checksums.UrlInfo(
            size=tfds.core.utils.Size(len(files[file])),
            checksum=hashlib.sha256(files[file]).hexdigest(),
            filename=file,
        )
        monkeypatch.setitem(tfds.builder_cls(name).url_infos, url, info)


def serve(monkeypatch, name, files):
    """Answers requests for the set's URLs with the files."""

    def get(*args, **kwargs):
        url = args[-1]
        response = requests.Response()
        response.status_code, response.url = 200, url
        response.raw = io.BytesIO(files[url.rsplit("/", 1)[1]])
        return response

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(requests.Session, "get", get)


def test_download(tmp_path, monkeypatch):
    files = cifar10_files()
    publish(monkeypatch, "cifar10", files)
    serve(monkeypatch, "cifar10", files)
    dataset = load("cifar10", data_dir=str(tmp_path), validation_fraction=0)
    np.testing.assert_array_equal(dataset.train.images, pixels("train", (32, 32, 3)))


def test_a_finished_download_is_used_without_network(tmp_path, monkeypatch):
    files = cifar10_files()
    publish(monkeypatch, "cifar10", files)
    put(tmp_path / "downloads" / "cifar10", {"odd name from an earlier run": files[CIFAR10]})
    assert len(load("cifar10", data_dir=str(tmp_path)).test) == 10


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    serve(monkeypatch, "cifar10", cifar10_files())
    with pytest.raises(UserError, match="the published checksum") as caught:
        load("cifar10", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cifar10").glob("*"))


def test_server_errors(tmp_path, monkeypatch):
    response = requests.Response()
    response.status_code, response.reason, response.raw = 404, "Not Found", io.BytesIO()
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: response)
    with pytest.raises(UserError, match="404"):
        load("cifar10", data_dir=str(tmp_path))


def test_sets_prepared_as_tfrecord_are_read(tmp_path):
    put(tmp_path, cifar10_files())
    expected = load("cifar10", data_dir=str(tmp_path))
    folder = tmp_path / "cifar10" / str(tfds.builder_cls("cifar10").VERSION)
    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in SIZES:
        source = builder.as_data_source(split=split, deserialize_method=raw)
        records = source.__getitems__(range(len(source)))
        content = b"".join(
            struct.pack("<QI", len(record), 0) + record + bytes(4) for record in records
        )
        (folder / f"cifar10-{split}.tfrecord-00000-of-00001").write_bytes(content)
    for path in folder.glob("*.array_record*"):
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    dataset = load("cifar10", data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, expected.train.images)

    path = folder / "cifar10-train.tfrecord-00000-of-00001"
    for cut in (1, 5000, 60_000):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(UserError, match="cannot be read"):
            load("cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "missing", "info"])
def test_a_damaged_prepared_set(tmp_path, damage):
    put(tmp_path, cifar10_files())
    load("cifar10", data_dir=str(tmp_path))
    (path,) = (tmp_path / "cifar10").glob("*/cifar10-train.array_record*")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "missing":
        path.unlink()
    else:
        (path.parent / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read.*delete that directory"):
        load("cifar10", data_dir=str(tmp_path))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare cifar10.*--data-dir"):
        load("cifar10", data_dir=str(tmp_path / "file" / "below"))


def test_a_full_disk(tmp_path, monkeypatch):
    put(tmp_path, cifar10_files())
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"1 MiB are free.*--data-dir"):
        load("cifar10", data_dir=str(tmp_path))
