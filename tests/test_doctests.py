"""The examples in docstrings run."""

import doctest
import importlib

import pytest

from irp_jax import models

pytestmark = pytest.mark.usefixtures("no_attacks")


@pytest.mark.parametrize("name", ["api", "errors", "data.corruptions.table"])
def test_examples(name, monkeypatch):
    short = lambda scale, classes, act: models.ResNet((1,), (16,), classes, act)  # noqa: E731
    monkeypatch.setitem(models.MODELS, "resnet8", short)
    found = doctest.testmod(importlib.import_module(f"irp_jax.{name}"))
    assert found.attempted and not found.failed
