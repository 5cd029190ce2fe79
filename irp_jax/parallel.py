"""Devices, and the placement of arrays on them.

Everything runs data-parallel under `jax.jit`. Parameters are replicated. Batches are split over one
mesh axis called "data". The compiler inserts the sums over devices. The same program runs on one
GPU, several, TPU chips, or the cores of a CPU, of one process or of several (see `hosts`). Batch
statistics are those of the whole batch, whatever the number of devices.
"""

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
