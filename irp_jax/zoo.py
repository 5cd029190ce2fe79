"""A trained network to hand on: its checkpoint without what training needed, and a model card."""

import shutil
from pathlib import Path

from irp_jax import checkpoint, files, network
from irp_jax.errors import UserError
from irp_jax.report.card import model_card


def publish(run: Path, results: Path, into: Path, log: checkpoint.Log) -> None:
    """Writes `into`/checkpoints and `into`/README.md; `bin/evaluate --checkpoint=INTO` reads them.

    Args:
        run: a finished run's workdir.
        results: JSON of the run: its results.json, or what bin/sweep collected of it.
        into: the folder to make.
        log: told of damaged checkpoints that are passed over.

    Raises:
        UserError: the run has no checkpoint or is not finished, its figures are not of test images,
            the results are not of this run, or `into` exists.
    """
    saved = checkpoint.restore(run / "checkpoints", None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {run}: give a run's workdir, such as runs/<name>")
    found = files.read_json(results)
    if found is None:
        raise UserError(
            f"there is no {results}: give the results.json of a finished run, or what bin/sweep "
            f"collected of it"
        )
    needed = {"config", "defense", "passes_per_image", "epochs", "network_sha256"}
    if not isinstance(found, dict) or not needed <= set(found):
        raise UserError(
            f"{results} is no results of a run of this version: give its results.json, or remove "
            f"that and give the run's command again, which evaluates it anew"
        )
    record = saved.record
    if found["config"] != record["identity"] or saved.epoch != found["epochs"]:
        raise UserError(f"{results} is not of the finished run in {run}")
    if record["config"].get("evaluate_on") == "validation":
        raise UserError(
            f"{results} is of held-out images, and a card gives figures of test images: train with "
            f"--evaluate-on=test"
        )
    if found["network_sha256"] != checkpoint.digest(network.of(saved).variables):
        raise UserError(f"{results} is of another training than the one in {run}")
    if into.exists():
        raise UserError(f"{into} exists: remove it first, or choose another name")
    files.check_place(into)
    # Places on the machine that trained are nobody else's business, and this is no run to resume.
    dataset = _public(record["config"]["dataset"])
    config = {**record["config"], "workdir": None, "data_dir": None, "dataset": dataset}
    record = {**record, "config": config, "identity": None}
    unfinished = into.with_name(f".{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        checkpoint.save(unfinished / "checkpoints", saved.epoch, saved.network, None, record)
        for mark in unfinished.rglob("commit_success.txt"):  # orbax writes there where it was
            mark.unlink()
        size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
        public = {**found, "config": {**found["config"], "dataset": dataset}}
        card = model_card(public, into, size, record["class_names"])
        files.write_whole(unfinished / "README.md", lambda file: file.write(card.encode()))
        unfinished.rename(into)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _public(dataset: str) -> str:
    """A data set's name; of a user's file, the file's name."""
    return Path(dataset).name if dataset.endswith(".npz") else dataset
