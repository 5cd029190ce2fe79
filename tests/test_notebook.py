"""The notebook for Colab: it is valid, it uses what exists, and it runs and resumes."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import irp_jax as irp
from irp_jax import files

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "colab.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
NET = """import flax.linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))
"""
MORE = {"epochs": 2, "train_images": 128, "batch_size": 64, "guard": False, "checkpoint_every": 0.0}


def tree():
    """Returns the syntax tree of all code, without the commands of IPython."""
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", code, flags=re.M))


def test_it_is_valid_and_holds_no_output():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    for cell in CELLS:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_what_it_uses_exists():
    members = {
        "irp": set(irp.__all__),
        "small": {field.name for field in dataclasses.fields(irp.Network)} | {*dir(irp.Network)},
        "data": {field.name for field in dataclasses.fields(irp.Dataset)},
    }
    used = {name: set() for name in members}
    for node in ast.walk(tree()):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.get(node.value.id, set()).add(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("irp_jax"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    for name, attributes in used.items():
        assert attributes and attributes <= members[name], name


def test_it_calls_functions_with_arguments_that_they_have():
    functions = {
        "train": irp.train, "load_data": irp.load_data,
        "evaluate": irp.Network.evaluate, "export": irp.Network.export,
    }  # fmt: skip
    called = set()
    for node in ast.walk(tree()):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in functions:
            called.add(node.func.attr)
            first = ["self"] if node.func.value.id == "small" else []
            named = {key.arg: None for key in node.keywords if key.arg is not None}
            inspect.signature(functions[node.func.attr]).bind(*first, *node.args, **named)
    assert called == set(functions)


INTERRUPTED = """
import irp_jax as irp
import nbclient
import nbformat


def stop(row):
    if row["epoch"] == 2:
        raise KeyboardInterrupt
    print(row)


RUN = f"{FOLDER}/{DATASET}"
try:
    irp.train(MODEL, DATASET, budget=BUDGET, workdir=RUN, progress=False, callback=stop, **MORE)
except KeyboardInterrupt:
    book = nbformat.read("colab.ipynb", 4)
    nbclient.NotebookClient(book, kernel_name="python3").execute()
    nbformat.write(book, "done.ipynb")
"""
"""Trains one epoch and a part of the second, and then runs the notebook."""


@pytest.mark.slow
def test_it_runs_and_continues_a_run_that_was_interrupted(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "net.py").write_text(NET)
    settings = {
        "DATASET": "digits", "MODEL": "net.py:Net", "BUDGET": 0.5, "FOLDER": "run", "MORE": MORE,
    }  # fmt: skip
    given = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    notebook.cells.insert(tags.index(["parameters"]) + 1, nbformat.v4.new_code_cell(given))
    nbformat.write(notebook, tmp_path / "colab.ipynb")
    # In a process of its own, because the kernel's client warns and leaves threads.
    ran = subprocess.run(
        [sys.executable, "-c", given + INTERRUPTED], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(NOTEBOOK.parent.parent), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first = ast.literal_eval(ran.stdout)
    done = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    run = tmp_path / "run" / "digits"
    history = files.read_log(run / "metrics.jsonl")
    assert [row["epoch"] for row in history] == [1, 2] and history[0] == first
    assert (run / "results.json").exists()
    assert (run / "model.onnx").stat().st_size > 0
