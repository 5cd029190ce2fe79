"""Tiny data sets in the official archive formats, for the tests of irp_jax.data."""

import gzip
import io
import struct
import tarfile

import numpy as np
import scipy.io

SIZES = {"train": 50, "test": 10}
CIFAR10 = "cifar-10-binary.tar.gz"


def pixels(split, shape):
    return np.random.default_rng(len(split)).integers(0, 256, (SIZES[split], *shape), np.uint8)


def labels(split, num_classes=10):
    return (np.arange(SIZES[split]) * 7 % num_classes).astype(np.uint8)


def tar_gz(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def cifar_rows(split, *label_columns):
    chw = pixels(split, (32, 32, 3)).transpose(0, 3, 1, 2).reshape(SIZES[split], -1)
    return np.concatenate([*(column[:, None] for column in label_columns), chw], axis=1)


def cifar10_members():
    train = cifar_rows("train", labels("train")).reshape(5, -1)
    members = {f"data_batch_{n + 1}.bin": train[n].tobytes() for n in range(5)}
    members["test_batch.bin"] = cifar_rows("test", labels("test")).tobytes()
    members["batches.meta.txt"] = "".join(f"kind{n}\n" for n in range(10)).encode() + b"\n"
    return {f"cifar-10-batches-bin/{name}": content for name, content in members.items()}


def cifar10_files():
    return {CIFAR10: tar_gz(cifar10_members())}


def cifar100_files():
    members = {
        f"cifar-100-binary/{split}.bin": cifar_rows(
            split, labels(split, 20), labels(split, 100)
        ).tobytes()
        for split in SIZES
    }
    for kind, count in {"coarse": 20, "fine": 100}.items():
        names = "".join(f"{kind}{n}\n" for n in range(count)).encode()
        members[f"cifar-100-binary/{kind}_label_names.txt"] = names
    return {"cifar-100-binary.tar.gz": tar_gz(members)}


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.tobytes())


def mnist_files():
    files = {}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(pixels(split, (28, 28)))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(labels(split))
    return files


def svhn_files():
    files = {}
    for split in SIZES:
        buffer = io.BytesIO()
        y = np.where(labels(split) == 0, 10, labels(split))[:, None]
        images = np.moveaxis(pixels(split, (32, 32, 3)), 0, -1)
        scipy.io.savemat(buffer, {"X": images, "y": y}, do_compression=True)
        files[f"{split}_32x32.mat"] = buffer.getvalue()
    return files


FILES = {
    "cifar10": (cifar10_files, (32, 32, 3), 10),
    "cifar100": (cifar100_files, (32, 32, 3), 100),
    "svhn_cropped": (svhn_files, (32, 32, 3), 10),
    "mnist": (mnist_files, (28, 28, 1), 10),
    "fashion_mnist": (mnist_files, (28, 28, 1), 10),
}
