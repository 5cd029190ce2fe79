"""Publishes a trained network: a saved network with a model card and files for other tools."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irp_jax import checkpoint, files, loading, network
from irp_jax.errors import UserError
from irp_jax.export import file as export
from irp_jax.export import onnx, tflite
from irp_jax.inference import hub, layout
from irp_jax.inference.record import scheme_of
from irp_jax.redaction import public_results
from irp_jax.report.card import model_card
from irp_jax.report.robustbench import Paper, robustbench
from irp_jax.results import NEEDED
from irp_jax.saving import packed


def publish(
    run: Path,
    results: Path,
    into: Path,
    log: checkpoint.Log,
    *,
    model: str | None = None,
    paper: Paper | None = None,
    with_tflite: bool = False,
) -> None:
    """Writes a network to a folder with the layout of the Hugging Face hub.

    The folder holds the files of `Network.save` (weights as safetensors, config.json), model.onnx,
    robustbench.json, and the model card README.md with the figures of the results. Paths of this
    machine are removed from all of them. If ONNX or LiteRT has no counterpart of an operation, its
    file is left out.

    Args:
        run: the workdir of a finished run, or a saved network.
        results: JSON file of the run's results: its results.json, or the file of bin/sweep.
        into: the folder to make. One that holds the same network is replaced.
        log: called with a line for each damaged checkpoint that is skipped, and for each file that
            is left out.
        model: "FILE.py:NAME" of a network of your own. If None, what was saved with it is used; it
            then has no model.onnx.
        paper: facts for robustbench.json that no run knows.
        with_tflite: whether to write model.tflite, too.

    Raises:
        UserError: there is no network, its accuracies are not of test images, the results are of
            another network, `into` holds something else, or the extra `onnx` or, for model.tflite,
            `litert` is not installed.
    """
    onnx.check_installed()
    if with_tflite:
        tflite.check_installed()
    trained = loading.load(run, log, model=model)
    found = _checked(results, trained, run)
    found, published = _without_paths(found, trained)
    contents = packed(published)
    if into.exists() and not layout.holds(into, contents):
        raise UserError(f"{into} exists: remove it first, or choose another name")
    for format in ("onnx", "tflite") if with_tflite else ("onnx",):
        contents |= _exported(published, format, model, log)
    facts = robustbench(found, paper or Paper(title=into.name))
    contents["robustbench.json"] = files.as_bytes(facts)
    size = len(contents[layout.ARRAYS])
    card = model_card(found, into, size, published.class_names)
    layout.write(into, {**contents, "README.md": card.encode()})


def _checked(results: Path, trained: network.Network, run: Path) -> dict[str, Any]:
    """Reads results, which must be of test images and of this network."""
    found = files.read_json(results)
    if found is None:
        raise UserError(
            f"there is no {results}: give the results.json of a finished run, or the file that "
            f"bin/sweep collected"
        )
    needed = {"config", "defense", "passes_per_image", "epochs", "network_sha256"}
    if not isinstance(found, dict) or not needed | NEEDED <= set(found):
        raise UserError(
            f"{results} does not hold results of a run of this version: give its results.json, or "
            f"remove that file and give the run's command again, which evaluates it again"
        )
    if found["config"].get("evaluate_on") == "validation":
        raise UserError(
            f"{results} is of held-out images, but a model card needs test images: train with "
            f"--evaluate-on=test"
        )
    if found["network_sha256"] != checkpoint.digest(trained.variables):
        raise UserError(f"{results} is of another network than the one in {run}: give its results")
    here, there = (scheme_of(each) or "float32" for each in (trained.record, found))
    if here != there:
        raise UserError(
            f"{results} is of the network in {there}, and the one in {run} is in {here}: give the "
            f"results of bin/train --quantize, or publish the network in {there}"
        )
    return found


def _without_paths(
    found: Mapping[str, Any], trained: network.Network
) -> tuple[dict[str, Any], network.Network]:
    """Returns results and network without paths of the machine that trained it."""

    shown: dict[str, Any] = public_results(dict(found))
    for settings in (shown, shown["config"], shown.get("identity", {})):
        settings |= {key: _public(settings[key]) for key in FILES if settings.get(key)}
    about = {**trained.record["trained"], "dataset": shown["config"]["dataset"], "data_dir": None}
    record = {**trained.record, "trained": about}
    if "file" in record["model"]:
        record["model"] = {"file": shown["config"]["model"]}
    return shown, dataclasses.replace(trained, record=record, history=[], results=shown)


FILES = ("dataset", "model", "teacher", "latency_table")
"""Settings that may name a file or folder of the user. Their folders are left out, even within the
working folder."""


def _public(name: str) -> str:
    """Returns a name. Of a path of the user, only the last part is returned."""
    return name if hub.is_name(name) else Path(name).name


def _exported(
    published: network.Network, format: str, model: str | None, log: checkpoint.Log
) -> dict[str, bytes]:
    """Returns the network as a file: name -> content. Empty if it cannot be written."""
    name = f"model.{format}"
    with tempfile.TemporaryDirectory(prefix="irp_jax-") as place:
        try:
            content = export.write(published, Path(place, name), format, model=model)
        except UserError as error:
            log(f"without {name}: {error}")
            return {}
    return {name: content}
