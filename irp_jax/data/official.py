"""Reads the official archives of the public image sets with the standard library and NumPy.

Nothing is unpacked to disk, and nothing is unpickled. CIFAR is read from its *binary* archive, in
memory and by the exact names of its members. So a hostile archive can neither write a file nor run
code.
"""

import dataclasses
import functools
import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of an archive.

    Attributes:
        splits: ``"train"`` and ``"test"`` -> columns. Column ``image`` is ``(N, H, W, C)`` uint8,
            every label column is ``(N,)`` uint8. The order is that of the archive.
        class_names: label column -> class names, if the archive contains them.
    """

    splits: Mapping[str, Mapping[str, np.ndarray]]
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Official:
    """The published form of one set.

    Attributes:
        urls: one per file; the last part of each is the file's name.
        sizes: the exact number of images in ``"train"`` and ``"test"``.
        parse: (file name -> path, sizes) -> contents. Raises `ValueError` unless the files hold
            exactly that many images with labels in range.
        id_format: format of an example's ``id`` in TensorFlow Datasets, from its split and its
            index in the archive; None if its examples have no id.
    """

    urls: tuple[str, ...]
    sizes: Mapping[str, int]
    parse: Callable[[Mapping[str, Path], Mapping[str, int]], Contents]
    id_format: str | None

    @property
    def files(self) -> dict[str, str]:
        """File name -> URL."""
        return {url.rsplit("/", 1)[1]: url for url in self.urls}

    def read(self, paths: Mapping[str, Path]) -> Contents:
        """Reads the files.

        Args:
            paths: file name -> path.

        Returns:
            The contents.

        Raises:
            ValueError: a file is invalid; the message says why.
        """
        try:
            return self.parse(paths, self.sizes)
        except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
            raise ValueError(f"unreadable ({error})") from error


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    _check(bool(labels.max() < num_classes), f"holds label {labels.max()} of {num_classes} classes")


def _read_cifar(
    paths: Mapping[str, Path],
    sizes: Mapping[str, int],
    *,
    members: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, tuple[str, int]],
) -> Contents:
    """Reads a binary CIFAR archive: records of label bytes, then 3 x 32 x 32 image bytes.

    Args:
        paths: file name -> path of the one archive.
        sizes: images per split.
        members: split -> the members of the archive that hold it.
        labels: label column -> the member with its class names, and the number of classes. The
            columns are in the order of the label bytes.

    References:
        https://www.cs.toronto.edu/~kriz/cifar.html, section "Binary version".
    """
    (archive,) = paths.values()
    record = len(labels) + 3 * 32 * 32
    splits, names = {}, {}
    with tarfile.open(archive, "r:gz") as tar:
        content = {}
        for member in tar:
            wanted = member.name in [m for ms in members.values() for m in ms]
            if member.isfile() and (wanted or member.name in [m for m, _ in labels.values()]):
                _check(member.size <= max(sizes.values()) * record, f"{member.name} is too large")
                stream = tar.extractfile(member)
                assert stream is not None, "a regular file has a stream"
                content[member.name] = stream.read()
    for split, parts in members.items():
        data = b"".join(content[part] for part in parts)
        _check(
            len(data) == sizes[split] * record,
            f"{split} has {len(data)} bytes, {sizes[split]} images take {sizes[split] * record}",
        )
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        pixels = rows[:, len(labels) :].reshape(-1, 3, 32, 32)
        columns = {"image": np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))}
        for place, (label, (_, num_classes)) in enumerate(labels.items()):
            columns[label] = rows[:, place]
            _check_labels(columns[label], num_classes)
        splits[split] = columns
    for label, (part, num_classes) in labels.items():
        names[label] = tuple(content[part].decode("ascii").split())
        _check(len(names[label]) == num_classes, f"{part} does not name {num_classes} classes")
    return Contents(splits=splits, class_names=names)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: magic number, one big-endian int32 per axis, the data."""
    header = 4 + 4 * len(shape)
    size = int(np.prod(shape))
    with gzip.open(path, "rb") as stream:
        # One extra byte detects a longer file, and the bound limits the size of a gzip bomb.
        data = stream.read(header + size + 1)
    found = tuple(np.frombuffer(data[4:header], ">i4").tolist())
    _check(data[:4] == bytes([0, 0, 8, len(shape)]), f"{path.name} is no IDX file of bytes")
    _check(found == shape, f"{path.name} says its shape is {found}, not {shape}")
    _check(len(data) == header + size, f"{path.name} does not hold {size} bytes of data")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_mnist(paths: Mapping[str, Path], sizes: Mapping[str, int]) -> Contents:
    """Reads the four files of MNIST, or of a set in the same format."""
    splits = {}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        size = sizes[split]
        images = _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"], (size, 28, 28))
        labels = _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"], (size,))
        _check_labels(labels, 10)
        splits[split] = {"image": images[..., None], "label": labels}
    return Contents(splits=splits)


def _read_svhn(paths: Mapping[str, Path], sizes: Mapping[str, int]) -> Contents:
    """Reads the MATLAB files of SVHN: X (32, 32, 3, N), y (N, 1) in 1..10, where 10 means "0"."""
    from scipy import io

    splits = {}
    for split, size in sizes.items():
        path = paths[f"{split}_32x32.mat"]
        try:
            data = io.loadmat(path, variable_names=["X", "y"])
        except (
            ValueError, TypeError, IndexError, NotImplementedError, MemoryError,
            io.matlab.MatReadError,
        ) as error:  # fmt: skip
            raise ValueError(f"{path.name} is no MATLAB 5 file ({error})") from error
        images, labels = data["X"], data["y"].reshape(-1)
        _check(images.dtype == np.uint8, f"{path.name}: X is {images.dtype}, not uint8")
        _check(images.shape == (32, 32, 3, size), f"{path.name}: X has shape {images.shape}")
        _check(labels.shape == (size,), f"{path.name}: y has {len(labels)} entries, not {size}")
        _check(bool(np.isin(labels, np.arange(1, 11)).all()), f"{path.name}: y is not in 1..10")
        image = np.ascontiguousarray(np.moveaxis(images, -1, 0))
        splits[split] = {"image": image, "label": (labels % 10).astype(np.uint8)}
    return Contents(splits=splits)


_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _mnist(base: str) -> Official:
    return Official(
        urls=tuple(base + file for file in _MNIST_FILES),
        sizes={"train": 60_000, "test": 10_000},
        parse=_read_mnist,
        id_format=None,
    )


OFFICIAL: dict[str, Official] = {
    "cifar10": Official(
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        sizes={"train": 50_000, "test": 10_000},
        parse=functools.partial(
            _read_cifar,
            members={
                "train": tuple(f"cifar-10-batches-bin/data_batch_{n}.bin" for n in range(1, 6)),
                "test": ("cifar-10-batches-bin/test_batch.bin",),
            },
            labels={"label": ("cifar-10-batches-bin/batches.meta.txt", 10)},
        ),
        id_format="{split}_{index:05d}",
    ),
    "cifar100": Official(
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        sizes={"train": 50_000, "test": 10_000},
        parse=functools.partial(
            _read_cifar,
            members={
                "train": ("cifar-100-binary/train.bin",),
                "test": ("cifar-100-binary/test.bin",),
            },
            labels={
                "coarse_label": ("cifar-100-binary/coarse_label_names.txt", 20),
                "label": ("cifar-100-binary/fine_label_names.txt", 100),
            },
        ),
        id_format="{split}_{index:05d}",
    ),
    "svhn_cropped": Official(
        urls=(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        ),
        sizes={"train": 73_257, "test": 26_032},
        parse=_read_svhn,
        id_format="{split}_{index:06d}",
    ),
    "mnist": _mnist("https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion_mnist": _mnist("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
}
