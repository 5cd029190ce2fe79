"""Conditions under which every test runs: two CPU devices and no silent change of dtype."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from unittest import mock

# A program that several tests compile, or processes they start, is compiled once. The first process
# makes the folder, before JAX is imported; those it starts inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="irp_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

# Most of the suite's time is compilation: few of LLVM's optimisations are worth theirs here. XLA's
# older code generator needs a quarter less of it, without optimisations two thirds. Newer versions
# lack it, and end the process at unknown flags.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
    if version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from hypothesis import settings

# Set before the first array: devices are fixed from then on.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same examples in every run: a failure in CI is a failure at one's desk. No deadline, since the
# first example of a test pays for its compilation.
settings.register_profile("irp_jax", derandomize=True, max_examples=20, deadline=None)
settings.load_profile("irp_jax")


@pytest.fixture
def quick_compile():
    """For tests that compile much and compute little: half the time goes to XLA's optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def quick_runs(monkeypatch, quick_compile):
    """Runs of a tiny network that nobody attacks: the attacks would take most time to compile."""
    from baseline_nets import Net

    from irp_jax import evaluation, models

    report = mock.Mock(natural=0.5, robust=0.25)
    monkeypatch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Net(8, 8, classes))
    monkeypatch.setattr(evaluation, "probe", lambda *args, **kwargs: evaluation.Probe(0, 0, 0))
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **kwargs: report)
