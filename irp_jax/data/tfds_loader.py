"""Loads public image sets through TensorFlow Datasets, without TensorFlow.

A set is prepared once. The official files are downloaded, or found where the user placed them. They
are checked and written as ArrayRecord into ``DATA_DIR/NAME/VERSION/``. `tfds.data_source` reads
them from there without TensorFlow. Name, version, features and order are those of the stock
builder, so a set that stock TensorFlow Datasets prepared there is used unchanged. Only the
preparation is replaced, because the stock builders call TensorFlow to unpack archives and to encode
images. One split is left out: SVHN's ``extra``, 1.3 GB of images that this package does not use.

The set is prepared in a directory with another name, which is renamed when it is complete. A killed
run therefore never leaves a set that looks finished.
"""

import contextlib
import io
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from irp_jax.data.fetch import check_network, check_room, download_failed, find_local_files
from irp_jax.data.official import OFFICIAL
from irp_jax.data.splits import Split
from irp_jax.errors import UserError

_log = logging.getLogger(__name__)

# tensorflow-metadata 1.21 beside protobuf 5, as in an image of Colab: the import of TensorFlow
# Datasets then only logs the error and lacks its functions.
if not hasattr(tfds, "builder_cls"):
    raise UserError(
        "TensorFlow Datasets cannot load tensorflow-metadata beside the installed protobuf: "
        "pip install 'tensorflow-metadata<1.18'"
    )

_TFRECORD = tfds.core.FileFormat.TFRECORD


def load_prepared(name: str, data_dir: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Loads a public set; prepares it first if necessary.

    Args:
        name: a key of `OFFICIAL`.
        data_dir: the directory of the prepared set, which may also hold the official files; None
            means ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
        Training images, test images and class names. If the stored examples have an id (CIFAR,
        SVHN), the order is that of the official files, otherwise that of the stock TensorFlow
        Datasets set. The order is the same on every machine.

    Raises:
        UserError: there is neither network nor local file, a download does not match its published
            checksum, a local file is not the official one, the directory is not writable, or a
            prepared set is damaged.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    builder = _make_builder(name, root)
    if not _is_prepared(builder):
        _prepare(builder, name, root)
        builder = _make_builder(name, root)
    names = tuple(str(class_name) for class_name in builder.info.features["label"].names)
    try:
        return _read_split(builder, "train"), _read_split(builder, "test"), names
    except (OSError, ValueError, RuntimeError, LookupError, DecodeError) as error:
        raise _damaged(builder.data_dir, error) from error


def _damaged(place: str | Path, error: Exception) -> UserError:
    return UserError(
        f"the prepared set {place} cannot be read ({error}): delete that directory and run again"
    )


# Preparing -----------------------------------------------------------------------------------


def _make_builder(name: str, root: Path) -> Any:
    """Returns the stock builder of one set with a preparation that does not use TensorFlow."""
    stock = tfds.builder_cls(name)
    official = OFFICIAL[name]

    class Builder(stock, skip_registration=True):  # type: ignore[misc, valid-type, call-arg]
        pkg_dir_path = stock._get_pkg_dir_path()
        url_infos = stock.url_infos
        local_files: Mapping[str, Path] = {}

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            missing = {f: url for f, url in official.files.items() if f not in self.local_files}
            downloaded = dl_manager.download(missing) if missing else {}
            files = {f: Path(path) for f, path in {**self.local_files, **downloaded}.items()}
            try:
                contents = official.read(files)
            except ValueError as error:
                places = ", ".join(str(path) for path in files.values())
                raise UserError(
                    f"{places} is not the official {name}: {error}; replace it with "
                    f"{' '.join(official.urls)}"
                ) from error
            for label, class_names in contents.class_names.items():
                self.info.features[label].names = class_names
            return {
                split: self._generate_examples(split, columns)
                for split, columns in contents.splits.items()
            }

        def _generate_examples(
            self, split: str, columns: Mapping[str, np.ndarray]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            labels = [column for column in columns if column != "image"]
            for index, pixels in enumerate(columns["image"]):
                # TensorFlow would encode arrays. PIL encodes PIL images.
                example: dict[str, Any] = {"image": Image.fromarray(np.squeeze(pixels))}
                for label in labels:
                    example[label] = int(columns[label][index])
                if official.id_format:
                    example["id"] = official.id_format.format(split=split, index=index)
                yield index, example

    Builder.name = name
    try:
        return Builder(data_dir=os.fspath(root))
    except (json_format.Error, OSError, ValueError) as error:
        raise _damaged(root / name, error) from error


def _is_prepared(builder: Any) -> bool:
    # The builder's own method logs a warning if the set is not prepared.
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def _prepare(builder: Any, name: str, root: Path) -> None:
    """Finds or downloads the official files and writes the prepared set."""
    official = OFFICIAL[name]
    local = find_local_files(name, builder.url_infos, root)
    missing = {f: url for f, url in official.files.items() if f not in local}
    check_room(name, builder.url_infos, missing, root)
    if missing:
        check_network(name, missing, root)
    _log.info("preparing %s in %s, once", name, builder.data_dir)
    builder.local_files = local
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(force_checksums_validation=True, try_download_gcs=False)
    try:
        # The library prints its progress to standard output, which is the caller's.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except tfds.download.DownloadError as error:
        raise download_failed(name, missing, root, str(error)) from error
    except requests.RequestException as error:
        raise download_failed(name, missing, root, type(error).__name__) from error
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        reason = "the downloaded file does not have the published checksum"
        raise download_failed(name, missing, root, reason) from error
    except (OSError, RuntimeError) as error:  # the record writer's RuntimeError: a full disk
        if _is_prepared(builder):
            return  # another process finished the same set first
        raise UserError(
            f"cannot prepare {name} in {root}: {error}; choose another place with --data-dir"
        ) from error


# Reading -------------------------------------------------------------------------------------


def _read_split(builder: Any, split: str) -> Split:
    """Reads one whole prepared split."""
    channels = builder.info.features["image"].shape[-1]
    expected = builder.info.splits[split].num_examples
    # Parsed directly, because decoding through the features takes three times as long.
    examples = [
        tf_example_pb2.Example.FromString(record).features.feature
        for record in _records(builder, split)
    ]
    if len(examples) != expected or not examples:
        raise ValueError(f"{split} holds {len(examples)} of {expected} images")
    if "id" in examples[0]:
        examples.sort(key=lambda example: example["id"].bytes_list.value[0])
    images = np.stack([_decode(example["image"].bytes_list.value[0]) for example in examples])
    labels = np.array([example["label"].int64_list.value[0] for example in examples], np.int32)
    return Split(images=images.reshape(*images.shape[:3], channels), labels=labels)


def _decode(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        return np.asarray(image, np.uint8)


def _records(builder: Any, split: str) -> Iterable[bytes]:
    """Returns a split's serialised examples, in the stored order."""
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in formats and _TFRECORD in formats:
        paths = builder.info.splits[split].filepaths
        return itertools.chain.from_iterable(_tfrecords(Path(path)) for path in paths)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split=split, deserialize_method=raw)
    return source.__getitems__(range(len(source)))


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, the default format of stock TensorFlow Datasets.

    A record is a little-endian uint64 length, its 4-byte checksum, the data and their 4-byte
    checksum. The checksums are not verified; a truncated file raises `ValueError`.
    """
    content = memoryview(path.read_bytes())
    start = 0
    while start < len(content):
        end = start + 12
        if end <= len(content):
            end += int.from_bytes(content[start : start + 8], "little") + 4
        if end > len(content):
            raise ValueError(f"{path.name} is truncated")
        yield bytes(content[start + 12 : end - 4])
        start = end
