"""Settings of all tests: two CPU devices and no implicit promotion of dtypes."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from unittest import mock

# All test processes share a compilation cache, so that equal programs are compiled once. The first
# process makes the folder before JAX is imported. Child processes inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="irp_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

# The tests compile much and compute little, so XLA's optimisations are off. XLA's older code
# generator compiles in a quarter less time. Newer versions of jaxlib lack it, and abort the process
# at an unknown flag. Child processes inherit both variables.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if "XLA_FLAGS" not in os.environ and version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from hypothesis import settings

# These are set before the first array is made, because that fixes the devices.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The examples are the same in every run, so that a failure in CI can be reproduced. There is no
# deadline, because the first example of a test includes compilation.
settings.register_profile("irp_jax", derandomize=True, max_examples=20, deadline=None)
settings.load_profile("irp_jax")


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file():
    """Frees the compiled programs after each file: thousands of them crash XLA's compiler."""
    yield
    jax.clear_caches()


@pytest.fixture
def no_attacks(monkeypatch):
    """Leaves out the attacks after each epoch and each run, because they take long to compile."""
    from irp_jax import evaluation

    report = mock.Mock(natural=0.5, robust=0.25)
    monkeypatch.setattr(evaluation, "probe", lambda *args, **kwargs: evaluation.Probe(0, 0, 0))
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **kwargs: report)


@pytest.fixture
def quick_runs(monkeypatch, no_attacks):
    """Makes runs fast: a tiny network, and no attacks on it."""
    from baseline_nets import Net

    from irp_jax import models

    monkeypatch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Net(8, 8, classes))
