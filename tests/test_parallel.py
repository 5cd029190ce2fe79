import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irp_jax import machine, parallel
from irp_jax.errors import UserError

ROOT = Path(__file__).parents[1]

# A training step like that of runs: donated state, a scan and a sum over devices.
STEP = """
import hashlib, json, jax, jax.numpy as jnp, numpy as np
from irp_jax import machine, parallel
machine.configure()
mesh = parallel.mesh()
images = parallel.place(np.linspace(0, 1, 8 * 64, dtype="float32").reshape(8, 64),
                        parallel.batch(mesh))
weights = parallel.place(np.linspace(-1, 1, 64 * 64, dtype="float32").reshape(64, 64),
                         parallel.replicated(mesh))
def loss(weights, images):
    for _ in range(12):
        images = jnp.tanh(images @ weights) + jnp.sort(images)
    return (images**2).mean()
def update(weights, _):
    return weights - 0.1 * jax.grad(loss)(weights, images), None
step = jax.jit(lambda w: jax.lax.scan(update, w, None, length=5)[0], donate_argnums=0)
for _ in range(3):
    weights = step(weights)
digest = hashlib.sha256(np.asarray(weights).tobytes()).hexdigest()
print(json.dumps([jax.device_count(), digest]))
"""


def run_step(cache: Path, **variables: str) -> tuple[int, str]:
    natural = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = natural | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)} | variables
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", STEP],
        env={"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    assert output.stderr == ""
    count, digest = json.loads(output.stdout)
    return count, digest


@pytest.mark.slow
def test_compiled_programs_are_kept_and_change_no_bit(tmp_path: Path) -> None:
    count, cold = run_step(tmp_path)
    assert count == machine.cores()
    entries = [path for path in tmp_path.rglob("*-cache") if "lambda" in path.name]
    assert len(entries) == 1
    stored = entries[0].read_bytes()
    assert run_step(tmp_path) == (count, cold)
    assert entries[0].read_bytes() == stored
    entries[0].write_bytes(stored[: len(stored) // 2])  # as after a kill during writing
    assert run_step(tmp_path) == (count, cold)


@pytest.mark.parametrize(
    "variables",
    [{"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, {"JAX_NUM_CPU_DEVICES": "3"}],
)
def test_the_users_own_device_count_is_kept(tmp_path: Path, variables: dict[str, str]) -> None:
    # An odd number of devices cannot share a batch of 8, so only the number is checked.
    code = "import jax; from irp_jax import machine; machine.configure()"
    output = subprocess.check_output(
        [sys.executable, "-c", code + "; print(jax.device_count())"],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
        | variables,
        text=True,
    )
    assert output == "3\n"


def test_configure_leaves_a_running_jax_alone() -> None:
    assert jax.device_count() == 2
    machine.configure(cache=False)
    assert jax.device_count() == 2


def test_no_cache_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "irp_jax").write_text("a file where the folder should go")
    assert run_step(tmp_path)[0] == machine.cores()


@given(st.integers(1, 4096))
def test_usable_devices_is_the_largest_that_divides(batch_size: int) -> None:
    count = parallel.usable_devices(batch_size)
    assert batch_size % count == 0
    assert count == (2 if batch_size % 2 == 0 and batch_size >= 32 else 1)


@pytest.mark.parametrize(
    ("platform", "batch_size", "count"),
    [("cpu", 128, 8), ("cpu", 15, 1), ("cpu", 1024, 64), ("cpu", 96, 6), ("gpu", 128, 128)],
)
def test_a_core_has_enough_images_of_a_batch(
    monkeypatch: pytest.MonkeyPatch, platform: str, batch_size: int, count: int
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 128)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert parallel.usable_devices(batch_size) == count


@pytest.mark.parametrize("batch_size", [0, -128])
def test_a_batch_without_images_is_refused(batch_size: int) -> None:
    with pytest.raises(UserError, match=str(batch_size)):
        parallel.usable_devices(batch_size)


@pytest.mark.parametrize("count", [0, -1, 3])
def test_a_mesh_of_devices_that_are_not_there_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"the 2 present, got {count}"):
        parallel.mesh(count)


@given(height=st.integers(1, 600), width=st.integers(1, 600))
def test_images_attacked_at_once_fit_a_core_and_all_devices(height: int, width: int) -> None:
    mesh = parallel.mesh()
    count = parallel.attacked_at_once(mesh, height, width)
    each = count // mesh.size
    assert count % mesh.size == 0 and 8 <= each <= 256
    assert each == 8 or each * height * width <= parallel.CACHED_PIXELS


def test_an_accelerator_attacks_hundreds_of_images_at_once() -> None:
    gpu = SimpleNamespace(size=2, devices=np.array([SimpleNamespace(platform="gpu")] * 2))
    sides = (8, 32, 64, 224)
    counts = [parallel.attacked_at_once(cast(Any, gpu), side, side) for side in sides]
    assert counts == [1024, 1024, 512, 512]


def test_place_splits_batches_and_copies_parameters() -> None:
    mesh = parallel.mesh()
    images = np.arange(12, dtype=np.uint8).reshape(4, 3)
    labels = np.arange(4, dtype=np.int32)
    tree = {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}
    split = parallel.place(tree, parallel.batch(mesh))
    copied = parallel.place(tree, parallel.replicated(mesh))
    for placed, rows in ((split, 2), (copied, 4)):
        assert placed["images"].dtype == jnp.uint8
        np.testing.assert_array_equal(placed["images"], images)
        np.testing.assert_array_equal(placed["labels"], labels)
        shapes = [shard.data.shape for shard in placed["images"].addressable_shards]
        assert shapes == [(rows, 3)] * 2


def test_the_sum_over_a_batch_is_over_all_devices() -> None:
    mesh = parallel.mesh()
    images = parallel.place(np.arange(8, dtype=np.float32), parallel.batch(mesh))
    mean = jax.jit(jnp.mean, out_shardings=parallel.replicated(mesh))(images)
    assert mean == 3.5
    assert mean.sharding.is_fully_replicated


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


def test_describe_is_plain_and_names_no_host_user_or_path() -> None:
    facts = machine.describe()
    assert facts["jax"] == jax.__version__
    assert (facts["optax"], facts["numpy"]) == (optax.__version__, np.__version__)
    assert facts["device_count"] == 2
    text = json.dumps(facts)
    assert json.loads(text) == facts
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text
    assert "/" not in text
