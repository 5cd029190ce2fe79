"""Publishes a trained network: a saved network with a model card."""

import dataclasses
import shutil
from pathlib import Path

from irp_jax import checkpoint, files, network
from irp_jax.errors import UserError
from irp_jax.report.card import model_card
from irp_jax.results import NEEDED


def publish(run: Path, results: Path, into: Path, log: checkpoint.Log) -> None:
    """Writes a network as `Network.save` does, and a model card as `into`/README.md.

    Paths of this machine are removed from the record and the card.

    Args:
        run: the workdir of a finished run.
        results: JSON file of the run's results: its results.json, or the file of bin/sweep.
        into: the folder to make.
        log: called with a line for each damaged checkpoint that is skipped.

    Raises:
        UserError: the run has no checkpoint or is not finished, its accuracies are not of test
            images, the results are not of this run, or `into` exists.
    """
    trained = network.load(run, log)
    found = files.read_json(results)
    if found is None:
        raise UserError(
            f"there is no {results}: give the results.json of a finished run, or the file that "
            f"bin/sweep collected"
        )
    needed = {"config", "identity", "defense", "passes_per_image", "epochs", "network_sha256"}
    if not isinstance(found, dict) or not needed | NEEDED <= set(found):
        raise UserError(
            f"{results} does not hold results of a run of this version: give its results.json, or "
            f"remove that file and give the run's command again, which evaluates it again"
        )
    whose = files.read_json(run / "config.json") or {}
    if found["identity"] != whose.get("identity") or trained.epoch != found["epochs"]:
        raise UserError(f"{results} is not of the finished run in {run}")
    if found["config"].get("evaluate_on") == "validation":
        raise UserError(
            f"{results} is of held-out images, but a model card needs test images: train with "
            f"--evaluate-on=test"
        )
    if found["network_sha256"] != checkpoint.digest(trained.variables):
        raise UserError(f"{results} is of another training than the one in {run}")
    if into.exists():
        raise UserError(f"{into} exists: remove it first, or choose another name")
    files.check_place(into)
    # Paths of the machine that trained the network are not published.
    hidden = {
        name: _public(found["config"][name])
        for name in ("dataset", "model", "teacher")
        if name in found["config"]
    }
    dataset, model = hidden["dataset"], hidden["model"]
    about = {**trained.record["trained"], "dataset": dataset, "data_dir": None}
    record = {**trained.record, "trained": about}
    if "file" in record["model"]:
        record["model"] = {"file": model}
    unfinished = into.with_name(f".{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        network.save(dataclasses.replace(trained, record=record, history=[]), unfinished)
        size = sum(path.stat().st_size for path in unfinished.iterdir())
        public = {**found, "config": {**found["config"], **hidden}}
        card = model_card(public, into, size, list(trained.class_names))
        files.write_whole(unfinished / "README.md", lambda file: file.write(card.encode()))
        unfinished.rename(into)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _public(name: str) -> str:
    """Returns a name. If it is the path of a user's file, only the file name is returned."""
    return Path(name).name if ".npz" in name or ".py" in name or Path(name).is_absolute() else name
