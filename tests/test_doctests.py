"""The examples in docstrings run."""

import doctest
import importlib

import pytest

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("name", ["api", "errors", "data.corruptions.table"])
def test_examples(name):
    found = doctest.testmod(importlib.import_module(f"irp_jax.{name}"))
    assert found.attempted and not found.failed
