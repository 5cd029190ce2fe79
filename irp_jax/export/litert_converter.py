"""The LiteRT converter: packages of their own, installed when they are first needed.

The converter needs older packages than JAX does. So its packages lie in a folder of their own in
the user's cache, and it runs in a process that sees no others. The pins of its packages name one
version with hashes, because its interface is not documented and may change.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from irp_jax.errors import UserError

SCRIPT = Path(__file__).with_name("litert_process.py")
"""The program that runs in the converter's process."""

SIZE = "350 MB"
"""Size of the installed packages."""

UNFINISHED = "unfinished-"
"""How names of folders begin that are not complete."""


class Request(NamedTuple):
    """A function to convert.

    Attributes:
        function: images (N, H, W, C) float32, N symbolic or 1 -> logits (N, K), as a portable
            artifact of StableHLO.
        image_shape: (H, W, C).
        metadata: key -> text, stored in the model.
    """

    function: bytes
    image_shape: Sequence[int]
    metadata: Mapping[str, str]


def convert(requests: Sequence[Request]) -> list[bytes]:
    """Converts functions to LiteRT models for one image, all in one process.

    Returns:
        The models as flatbuffers.

    Raises:
        UserError: the converter cannot be installed, or it cannot convert an operation.
    """
    packages = install()
    with tempfile.TemporaryDirectory() as work:
        for number, request in enumerate(requests):
            Path(work, f"{number}.mlirbc").write_bytes(request.function)
        rest = [
            {"image_shape": list(request.image_shape), "metadata": dict(request.metadata)}
            for request in requests
        ]
        Path(work, "requests.json").write_text(json.dumps(rest))
        # -I and -S: the process sees the standard library and the converter's packages alone.
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(packages), work]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return [Path(work, f"{number}.tflite").read_bytes() for number in range(len(rest))]
    raise UserError(
        f"the network cannot be written for LiteRT ({_reason(done.stderr, done.returncode)}): "
        f"--format=onnx and stablehlo may be able to"
    )


def _reason(said: str, code: int) -> str:
    """Returns what the converter complained about, in one line."""
    if code < 0:
        return f"the converter crashed with signal {-code}"
    errors = [line for line in said.splitlines() if "rror: " in line]
    return errors[0].split("rror: ", 1)[1][:200].strip(" :") if errors else f"exit code {code}"


# ---- its packages --------------------------------------------------------------------------------


def pins() -> Path:
    """Returns the file of the pinned packages."""
    package = Path(__file__).parents[1]
    # In a checkout requirements/ is beside the package, in a wheel inside it.
    inside = package / "requirements" / "litert-converter.txt"
    return inside if inside.is_file() else package.parent / "requirements" / inside.name


def folder() -> Path:
    """Returns the folder of the converter's packages, for these pins and this Python."""
    kind = f"{sys.implementation.cache_tag} {sys.platform} {platform.machine()} "
    digest = hashlib.sha256(kind.encode() + pins().read_bytes()).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError("there is no home folder: set XDG_CACHE_HOME to a folder") from error
    return cache.absolute() / "irp_jax" / "litert-converter" / digest[:12]


def install() -> Path:
    """Installs the packages of the converter with pip, unless they are installed.

    They are installed in a temporary folder that is renamed at the end. So a folder that exists is
    complete.

    Returns:
        The folder that holds them.

    Raises:
        UserError: the converter does not run on this system, pip failed, or the folder cannot be
            written.
    """
    place = folder()
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place.parent):
            if not place.is_dir():  # another process may have installed them meanwhile
                _install(place)
    except OSError as error:
        raise UserError(
            f"cannot install the LiteRT converter in {place.parent} ({error.strerror or error}): "
            f"make room, or choose another cache folder with XDG_CACHE_HOME"
        ) from error
    return place


def _install(place: Path) -> None:
    for left in place.parent.glob(f"{UNFINISHED}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    print(f"installing the LiteRT converter once, {SIZE}, in {place}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place.parent) as unfinished:
        packages = Path(unfinished, "packages")
        _run_pip(packages)
        packages.rename(place)


def _run_pip(packages: Path) -> None:
    # An environment made without pip uses the pip of the Python that it was made from.
    own = importlib.util.find_spec("pip") is not None
    python = sys.executable if own else getattr(sys, "_base_executable", sys.executable)
    # -P keeps the working folder off sys.path, so that a `pip.py` there is not run.
    command = [python, "-P", "-m", "pip", "install", "--quiet", "--no-input", "--no-user"]
    command += ["--disable-pip-version-check", "--no-compile", "--require-hashes"]
    command += ["--only-binary=:all:", f"--target={packages}", f"--requirement={pins()}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise UserError(
            f"pip cannot install the LiteRT converter ({reason[:200]}): it needs Linux on x86-64 "
            f"or a Mac with Apple silicon, and a network connection or a folder of wheels in "
            f"PIP_FIND_LINKS, once"
        )


@contextlib.contextmanager
def _lock(parent: Path) -> Iterator[None]:
    """Lets one process install at a time, where the file system has locks."""
    with open(os.path.join(parent, ".lock"), "w") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
