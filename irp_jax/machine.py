"""This machine: its cores, what JAX is told about them, and what results record of hardware.

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

import jax

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


def cores() -> int:
    """Returns how many CPU cores this process may use, by affinity and container quota."""
    count = len(core_numbers())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no such file, or its quota is the word "max"
    return count


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
