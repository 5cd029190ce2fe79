"""Runs of several processes, on one host or many, by JAX's own distributed runtime.

Every process runs the same program on its own devices. `parallel` makes one mesh of all devices.
Process 0 alone writes files and reports. A process that fails ends, and the runtime then ends the
others. The run is resumed by starting all processes again.
"""

import atexit
import functools
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from irp_jax import machine
from irp_jax.errors import UserError, reason

P = ParamSpec("P")

WAIT = 300
"""Seconds in which all processes must have started."""
LOST_AFTER = 30
"""Seconds without a sign of life after which a process counts as lost."""
LOST = (
    f"error: another process of this run ended, or did not start within {WAIT} s: start all "
    f"processes again to go on from the last saved state"
)


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait: int = WAIT,
) -> None:
    """Joins the processes of a run. Call it before the first array is made.

    Without arguments, JAX finds the processes that Slurm, Open MPI, an indexed job of Kubernetes or
    a TPU pod has started. On any other machine, and with `processes=1`, nothing happens.

    Args:
        coordinator: HOST:PORT at which process 0 is reached.
        processes: number of processes of the run.
        process: number of this process, from 0.
        wait: seconds in which all processes must have started.

    Raises:
        UserError: a value is missing or wrong, the port is in use, the coordinator is not reached,
            or the processes have different numbers of devices.
    """
    machine.configure()
    if coordinator is None and processes is None and process is None:
        if not is_cluster():
            return
        with _explained():
            _initialize(wait)
    else:
        host, port = _checked(coordinator, processes, process)
        if processes == 1:
            return
        (_check_free if process == 0 else functools.partial(_reach, wait=wait))(host, port)
        with _explained():
            _initialize(
                wait, coordinator_address=coordinator, num_processes=processes, process_id=process,
                cluster_detection_method="deactivate",
            )  # fmt: skip
    if not is_several():
        return
    watching = threading.Thread(target=_watch, daemon=True)
    watching.start()
    atexit.register(watching.join)
    atexit.register(_over.set)  # called first
    sys.excepthook = _fail_uncaught
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the processes have different numbers of devices ({sorted(counts.values())}): give "
            f"each the same number of GPUs, or of CPU cores with JAX_NUM_CPU_DEVICES"
        )


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and reports."""
    return not is_several() or jax.process_index() == 0


def is_several() -> bool:
    """Returns whether the run has several processes. It does not start JAX."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def by_first(write: Callable[P, None]) -> Callable[P, None]:
    """Makes a function that writes files do nothing in all processes but the first."""

    @functools.wraps(write)
    def only(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_first():
            write(*args, **kwargs)

    return only


def from_first(content: bytes) -> bytes:
    """Returns what process 0 gave. All processes must call it at the same point."""
    if not is_several():
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # The first process sends its bytes. The others only need an array of the same shape.
    sent = np.zeros(size, np.uint8)
    if is_first():
        sent[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8).tobytes()


def agreed(value: Any) -> Any:
    """Returns the value of process 0 in every process; any value that can be written as JSON."""
    return json.loads(from_first(json.dumps(value).encode())) if is_several() else value


def any_of(value: bool) -> Callable[[], bool]:
    """Asks all processes whether a value is true in any of them.

    All must call it at the same point. The devices answer after the programs that they have been
    given before. So the answer is a function, which waits for it.
    """
    if not is_several():
        return lambda: value
    mesh = Mesh(np.array(jax.devices()), ("process",))
    sharding = NamedSharding(mesh, PartitionSpec("process"))
    own = np.full(jax.local_device_count(), value)
    everyone = jax.make_array_from_process_local_data(sharding, own)
    answer = _any(NamedSharding(mesh, PartitionSpec()))(everyone)
    return lambda: bool(answer.addressable_data(0))


@functools.cache
def _any(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=sharding)


def check_same(what: str, value: Any) -> None:
    """Checks that all processes have the same value as process 0.

    Args:
        what: its name in the error, in the plural.
        value: any value that can be written as JSON.

    Raises:
        UserError: a value differs. Every process raises it.
    """
    if not is_several():
        return
    alike = json.dumps(value) == json.dumps(agreed(value))
    differing = np.flatnonzero(~multihost_utils.process_allgather(np.array(alike)))
    if len(differing):
        raise UserError(
            f"process {differing[0]} has other {what} than process 0: start all processes with the "
            f"same command, code and files"
        )


def is_loss(error: BaseException) -> bool:
    """Returns whether an operation failed because another process ended."""
    text = str(error)
    return is_several() and any(word in text for word in ("Gloo", "NCCL", "coordination"))


def fail(message: str, code: int) -> NoReturn:
    """Prints an error and ends this process, and all other processes of the run.

    Args:
        message: one line, which the others print, too.
        code: exit code of this process; that of the others is 2.
    """
    if is_several() and not _ending.acquire(blocking=False):
        time.sleep(_GOODBYE)  # the message of another process is printed just now
    print(message, file=sys.stderr)
    if not is_several():
        sys.exit(code)
    with suppress(jax.errors.JaxRuntimeError):  # another process was first
        _client().key_value_set(f"{_FAILED}/message", message)
    _end(code)


_FAILED = "irp_jax/failed"
_GOODBYE = 5
"""Seconds in which all processes must have read an error."""
_over = threading.Event()
"""Set when the program ends, because no other thread may then be within JAX."""
_ending = threading.Lock()
"""Held by the thread that prints the error and ends the process."""


def _client() -> Any:
    """Returns the client of JAX's runtime. JAX has no public function for its messages."""
    from jax._src.distributed import global_state

    return global_state.client


def _watch() -> None:
    """Ends this process if another one fails."""
    client = _client()
    while not _over.wait(timeout=1):
        try:
            found = client.key_value_dir_get(_FAILED)
        except jax.errors.JaxRuntimeError:  # process 0 ended, which JAX's runtime notices
            return
        if found and _ending.acquire(blocking=False):
            print(found[0][1], file=sys.stderr)
            _end(2)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier(_FAILED, _GOODBYE * 1000)
    if is_first():  # JAX's runtime aborts the processes that are left when process 0 ends
        time.sleep(2)
    os._exit(code)  # the usual exit waits until the run is complete


def _fail_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sys.__excepthook__(kind, error, trace)
    fail(f"error: {kind.__name__} in process {jax.process_index()}", 1)


def _initialize(wait: int, **which: Any) -> None:
    with suppress(AttributeError):  # versions of JAX without this setting
        jax.config.update("jax_enable_preemption_service", False)  # it would ignore SIGTERM
    jax.distributed.initialize(
        initialization_timeout=wait, heartbeat_timeout_seconds=LOST_AFTER,
        shutdown_timeout_seconds=wait, **which,
    )  # fmt: skip


def is_cluster() -> bool:
    """Returns whether a scheduler has started several processes, by its variables."""
    given = os.environ
    if "SLURM_STEP_NODELIST" in given:  # set within srun only
        return _more_than_one("SLURM_NTASKS")
    if "KUBERNETES_SERVICE_HOST" in given and "JOB_COMPLETION_INDEX" in given:
        return importlib.util.find_spec("kubernetes") is not None
    on_tpu = given.get("JAX_PLATFORMS") != "cpu" and importlib.util.find_spec("libtpu") is not None
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return _more_than_one("OMPI_COMM_WORLD_SIZE") or (on_tpu and chips)


def _more_than_one(variable: str) -> bool:
    text = os.environ.get(variable, "")
    return text.isdecimal() and int(text) > 1


def _checked(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int]:
    """Returns host and port of the coordinator. Raises UserError for values that do not fit."""
    if processes is None:
        raise UserError("--coordinator and --process need --processes, the number of all processes")
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    if process is not None and not 0 <= process < processes:
        raise UserError(
            f"--process must be in 0 .. {processes - 1} for --processes={processes}, got {process}"
        )
    if processes == 1:
        return "", 0
    if coordinator is None or process is None:
        lacking = "--coordinator=HOST:PORT of process 0" if coordinator is None else "--process"
        raise UserError(f"--processes={processes} needs {lacking}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, for instance node1:1234: {coordinator}")
    return host.strip("[]"), int(port)


def _check_free(host: str, port: int) -> None:
    """Raises UserError if the coordinator cannot listen at its port."""
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {port} ({error.strerror}): give another port in "
                f"--coordinator"
            ) from error


def _reach(host: str, port: int, wait: int) -> None:
    """Waits until the coordinator listens. Raises UserError if it does not."""
    end = time.monotonic() + wait
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1, wait)).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"no coordinator at {host}:{port} within {wait} s ({error.strerror or error}): "
                    f"start process 0, and check --coordinator and the firewall"
                ) from error
            time.sleep(0.2)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns an error of JAX's start into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"JAX cannot join the processes of this run ({reason(error)}): give "
            f"--coordinator=HOST:PORT --processes=N --process=I, or --processes=1 to run alone"
        ) from error
