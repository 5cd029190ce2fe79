"""Devices, and the placement of arrays on them.

Everything runs data-parallel under `jax.jit`. Parameters are replicated. Batches are split over one
mesh axis called "data". The compiler inserts the sums over devices. The same program runs on one
GPU, several, TPU chips, or the cores of a CPU, of one process or of several (see `hosts`). Batch
statistics are those of the whole batch, whatever the number of devices.

On a CPU each core is a device of its own. XLA's threads within one device share a convolution
badly: on two cores a Fast AT step of ResNet20 at batch 128 ran at 157 images/s as one device and at
220 as two (JAX 0.10.2). Limiting the threads inside each device as well made it slower.
"""

import hashlib
import os
import platform
import shutil
import time
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from irp_jax.errors import UserError

Tree = TypeVar("Tree")

AXIS = "data"
CACHED_PIXELS = 2**16
"""Image pixels (height times width times images) at which a small network still fits a core's
cache."""
FEWEST = 16
"""Minimum number of images of a batch for each CPU core."""
_CACHE_DAYS = 30


def configure(*, cache: bool = True) -> None:
    """Sets up JAX for this process. Call it once, before the first array is made.

    It makes one device per CPU core. It stores compiled programs in the user's cache folder, so
    that the second run of a command hardly compiles: for a Fast AT step of ResNet20 on two cores, 5
    CPU seconds instead of 14. Settings that the user made through the variables of JAX or XLA are
    kept. If JAX already runs, as in a notebook, its devices are kept.

    Args:
        cache: whether compiled programs are kept between processes. Results do not depend on it:
            the same machine code is stored and loaded.
    """
    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not counted and jax.config.jax_num_cpu_devices < 1:  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # devices cannot change after the first array
            jax.config.update("jax_num_cpu_devices", cores())
    if cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        _keep_compiled_programs()


def core_numbers() -> list[int]:
    """Returns the CPU cores this process may run on, ascending."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return list(range(os.cpu_count() or 1))


def stay_on(numbers: set[int]) -> None:
    """Restricts this thread, and all that it starts, to some CPU cores, if the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def has_accelerator() -> bool:
    """Returns whether JAX would use a GPU or TPU. It checks device files and does not start JAX.

    `bin/_launch.py` installs JAX's plugins for the same device files.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    devices = Path("/dev")
    if any(devices.glob("nvidia[0-9]*")) or any(devices.glob("accel[0-9]*")):
        return True
    windows_gpu = (devices / "dxg").exists() and shutil.which("nvidia-smi") is not None
    on_tpu = any(name.startswith("TPU_") for name in os.environ)  # other devices use vfio, too
    return windows_gpu or (on_tpu and any(devices.glob("vfio/[0-9]*")))


def cores() -> int:
    """Returns how many CPU cores this process may use, by affinity and container quota."""
    count = len(core_numbers())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no such file, or its quota is the word "max"
    return count


def mesh(device_count: int | None = None) -> Mesh:
    """Returns a mesh of devices with the one axis "data".

    Args:
        device_count: how many of JAX's devices to use; all of them if None.

    Returns:
        A mesh whose axis has type Auto: the compiler propagates the shardings.

    Raises:
        UserError: the count is not positive or above the number of devices.
    """
    devices, processes = jax.devices(), jax.process_count()
    if device_count is None:
        device_count = len(devices)
    if not 1 <= device_count <= len(devices):
        raise UserError(
            f"device count must be between 1 and the {len(devices)} present, got {device_count}"
        )
    if device_count % processes:
        raise UserError(f"{processes} processes cannot use {device_count} devices evenly")
    each = device_count // processes
    chosen = [
        device
        for number in range(processes)
        for device in [one for one in devices if one.process_index == number][:each]
    ]
    return jax.make_mesh((device_count,), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def along_one_axis(given: Mesh | None) -> Mesh | None:
    """Returns a caller's devices, laid out as everything here expects them: see `mesh`.

    Raises:
        UserError: it is no mesh, or one without devices, or JAX is set to one of Explicit axes.
    """
    if given is None:
        return None
    if not isinstance(given, Mesh):
        raise UserError(
            f"mesh must be a jax.sharding.Mesh with devices, got {type(given).__name__}: give "
            f"jax.make_mesh((2,), ('data',)), for instance"
        )
    if is_explicit(jax.sharding.get_abstract_mesh()):
        raise UserError(
            "a mesh of Explicit axes is set, under which batches cannot be spread over devices: "
            "call this outside jax.set_mesh"
        )
    return Mesh(given.devices.flatten(), (AXIS,), axis_types=(AxisType.Auto,))


def automatic(tree: Tree) -> Tree:
    """Returns a tree with arrays that lie on a mesh of Explicit axes on the same one of Auto axes.

    The compiler spreads the programs here over the devices, which Explicit axes forbid.
    """

    def moved(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or not is_explicit(sharding.mesh):
            return leaf
        given = sharding.mesh
        kinds = (AxisType.Auto,) * len(given.axis_names)
        same = Mesh(given.devices, given.axis_names, axis_types=kinds)
        return jax.device_put(leaf, NamedSharding(same, sharding.spec))

    return jax.tree.map(moved, tree)


def is_explicit(mesh: Any) -> bool:
    """Whether a mesh, which may be an abstract one, has Explicit axes."""
    return AxisType.Explicit in getattr(mesh, "axis_types", ())


def busy_devices(images: int) -> int:
    """Returns how many devices are worth using for `images` images at once.

    It is a multiple of the number of processes, at least one device of each.

    A CPU core is used only with `FEWEST` images or more. With fewer, it mostly waits for the other
    cores. Each core also takes memory for replicated arrays, such as the training images.
    """
    count, processes = jax.device_count(), jax.process_count()
    if jax.default_backend() == "cpu":
        count = min(count, images // FEWEST // processes * processes)
    return max(processes, count)


def usable_devices(batch_size: int) -> int:
    """Returns the largest number of devices that divides a batch evenly, up to `busy_devices`.

    Every process has the same share of them.

    Raises:
        UserError: the batch size is not positive, or the processes cannot share it evenly.
    """
    if batch_size < 1:
        raise UserError(f"batch size must be at least 1, got {batch_size}: try 128")
    processes = jax.process_count()
    if batch_size % processes:
        raise UserError(
            f"batch size {batch_size} cannot be shared by {processes} processes: give a multiple "
            f"of {processes}"
        )
    counts = range(processes, busy_devices(batch_size) + 1, processes)
    return max(n for n in counts if batch_size % n == 0)


def attacked_at_once(mesh: Mesh, height: int, width: int) -> int:
    """Returns the default batch size of an evaluation.

    On a GPU or TPU it is 512 images a device, or 256 large images. Small networks are no faster in
    smaller batches. Deep networks (WRN28-4, ResNet110) have to fit into memory with their
    gradients. On a CPU it is up to 256 images a core, but at most `CACHED_PIXELS` pixels, which is
    64 images of 32 x 32. On two cores ResNet20 at 16 % of its operations made 2,430 input gradients
    a second at 64 images a core, 1,900 at 128 and 1,700 at 256 (JAX 0.10.2).
    """
    if mesh.devices.flat[0].platform != "cpu":
        return min(512, max(256, 2**19 // (height * width))) * mesh.size
    return min(256, max(8, CACHED_PIXELS // (height * width))) * mesh.size


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole: parameters, keys, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose leading axis, the examples, is split over devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def batches(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of many batches (steps, N, ...), each split over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, AXIS))


def share(size: int) -> slice:
    """Returns the part of a batch that belongs to the devices of this process.

    Args:
        size: of the batch, a multiple of the number of processes.
    """
    own = size // jax.process_count()
    return slice(own * jax.process_index(), own * (jax.process_index() + 1))


def place_share(array: np.ndarray, sharding: NamedSharding, shape: tuple[int, ...]) -> jax.Array:
    """Puts an array on the devices, of which each process has only its own part.

    Args:
        array: the part of this process: see `share`.
        sharding: of the whole array.
        shape: of the whole array.
    """
    return jax.make_array_from_process_local_data(sharding, array, shape)


def place(tree: Tree, sharding: Sharding | None) -> Tree:
    """Puts every array of a tree on the devices; values, shapes and dtypes are kept.

    Args:
        tree: any pytree of arrays, of NumPy's or JAX's. Under `batch`, every leading axis must be
            a multiple of the number of devices. If the devices are of several processes, each gives
            the same values.
        sharding: `replicated(mesh)` or `batch(mesh)`; None for the default device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `device_put` would compare the values of all processes and takes no keys.
    return jax.jit(_same, out_shardings=sharding)(tree)


def _same(tree: Tree) -> Tree:
    return tree


def fetch(tree: Tree) -> Tree:
    """Returns a tree of whole NumPy arrays, in every process.

    Args:
        tree: any pytree of arrays. Those of several processes are fetched by all of them at the
            same point.
    """

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        spread: Any = leaf.sharding  # a NamedSharding, as `place` makes them
        return leaf if leaf.is_fully_replicated else place(leaf, replicated(spread.mesh))

    return jax.device_get(jax.tree.map(whole, tree))


VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose versions results depend on."""


def describe() -> dict[str, str | int]:
    """Returns the software and the hardware that a result depends on.

    It contains neither host, user nor path, so that results can be published unchanged.
    """
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
        "platform": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "processor": _processor(),
        "cpu_count": cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Returns the processor's name and, if known, family and model: some models share a name."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model\t")
    return f"{name}, family {family} model {model}" if family and model else name


def _cpuinfo(field: str) -> str:
    """Returns a field of the first core in Linux's /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _keep_compiled_programs() -> None:
    # A CPU program uses the instructions of the processor that compiled it, and different machines
    # may share a home folder. So each kind of processor has its own folder.
    kind = f"{platform.machine()} {_processor()} {_cpuinfo('flags')}"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "irp_jax" / "xla" / hashlib.sha256(kind.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():  # JAX never removes an entry
            if entry.stat().st_mtime < time.time() - _CACHE_DAYS * 86400:
                entry.unlink()
        usable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no home folder, or another process removed the entry
        usable = False
    if usable:
        # An entry truncated by a kill or a full disk is compiled again, without a warning.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_compilation_cache_dir", str(folder))
