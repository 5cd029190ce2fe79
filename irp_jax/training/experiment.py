"""Runs one config: prepares, trains, evaluates, saves. A run can be resumed."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from irp_jax import attacks, checkpoint, evaluation, files, hosts, machine, parallel
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.errors import UserError
from irp_jax.inference.function import deployed, inference
from irp_jax.inference.record import described
from irp_jax.network import Network
from irp_jax.pruning import cost
from irp_jax.results import check_version
from irp_jax.training import logs, loop
from irp_jax.training.checkpoints import network_record, resume
from irp_jax.training.preemption import Preemption, on_sigterm
from irp_jax.training.prepare import prepare
from irp_jax.training.progress import Progress, Reporter, Setup, start


def run(
    config: Config,
    reporter: Reporter,
    command: str,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    variables: Any = None,
) -> dict[str, Any]:
    """Trains, prunes, evaluates and saves a network.

    Args:
        config: settings of the run.
        reporter: receives messages and progress.
        command: the user's command line, for results.json.
        model: a network to train instead of the one that the config names: see `adapters.adapt`.
        dataset: a data set to use instead of the one that the config names.
        variables: initial weights of `model`.

    Returns:
        The content of results.json. The network is saved in `network` in the workdir.

    Raises:
        UserError: the run cannot be done with these settings. Files written before are complete.
        Preempted: SIGTERM stopped the run, and it can be resumed. It is a SystemExit.
    """
    began = time.monotonic()
    setup, notes = prepare(config, reporter.note, model=model, dataset=dataset, variables=variables)
    workdir, settings = configs.workdir(setup.config), configs.settings(setup.config)
    copies = logs.make(setup.config.log_to if hosts.is_first() else "", workdir, settings)
    commit = files.commit()  # read now, because the files may change during the run
    with (
        files.lock(workdir, setup.identity),
        on_sigterm(reporter.note, held=hosts.is_several()) as preemption,
    ):
        results = _finished(setup, workdir)
        if results is not None:
            reporter.note(f"{workdir} is finished: showing its results")
        else:
            reporter.note(f"run in {workdir}")
            for line in notes:
                reporter.note(line)
            progress = _train(setup, workdir, reporter, copies, preemption, began)
            trained = _network(setup, progress, workdir)
            results = _evaluate(setup, progress, trained, reporter) | {
                "environment": machine.describe(),
                "command": command,
                "commit": commit,
                "layers": cost.table(setup.graph, progress.keep_counts),
                "history": trained.history,
            }
            trained.save(workdir / "network")
            files.write_json(workdir / "results.json", results)
    results = hosts.agreed(results)  # all files are written when this returns
    reporter.end(results)
    return results


def _finished(setup: Setup, workdir: Path) -> dict[str, Any] | None:
    """Returns the results of the run if it is finished.

    Raises:
        UserError: the results are of another run or version.
    """
    found = hosts.agreed(files.read_json(workdir / "results.json") if hosts.is_first() else None)
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("identity") != setup.identity:
        raise UserError(
            f"{workdir / 'results.json'} is not of this run: move it away, or choose another "
            f"--workdir"
        )
    check_version(found, workdir / "results.json", "--workdir")
    return found


def _train(
    setup: Setup,
    workdir: Path,
    reporter: Reporter,
    copies: Sequence[logs.Log],
    preemption: Preemption,
    began: float,
) -> Progress:
    """Trains to the end, from the last checkpoint if there is one.

    Args:
        setup, workdir, reporter, preemption: of the run.
        copies: of the log of epochs.
        began: when this process began the run, on the clock of `time.monotonic`.
    """
    progress = resume(setup, workdir, reporter.note)  # raises UserError for another run
    settings = configs.settings(setup.config)
    record = {"identity": setup.identity, "settings": settings, "target": setup.plan.ratio}
    files.write_json(workdir / "config.json", record)
    progress = progress or start(setup)
    progress = progress.after(time.monotonic() - began)
    with logs.closed(copies):
        return loop.train(setup, progress, workdir, reporter, copies, preemption)


# ---- the final network and its results -------------------------------------------------------


def _network(setup: Setup, progress: Progress, workdir: Path) -> Network:
    """Returns the trained network."""
    state = progress.state.network
    variables = jax.device_get(deployed(setup.graph, state, state["batch_stats"]))
    record = network_record(setup, progress.keep_counts, progress.quantization)
    return Network(
        apply=inference(setup.model.network, progress.quantization),
        variables=variables,
        record=described(record, setup.graph, progress.keep_counts, progress.epoch),
        history=files.read_log(workdir / "metrics.jsonl") if hosts.is_first() else [],
    )


def _evaluate(
    setup: Setup, progress: Progress, trained: Network, reporter: Reporter
) -> dict[str, Any]:
    """Evaluates natural and PGD accuracy of the deployed network.

    Returns:
        The content of results.json, without environment, command, commit, layers and history.
    """
    config = setup.config
    spec = evaluation.AttackSpec(epsilon=config.epsilon)
    held_out = config.evaluate_on == "validation"
    measured = setup.dataset.validation if held_out else setup.dataset.test
    began = time.monotonic()
    everything = (trained.apply, trained.variables, measured.images, measured.labels, spec)
    how: dict[str, Any] = {
        "batch_size": parallel.attacked_at_once(setup.mesh, *setup.dataset.image_shape[:2]),
        "mesh": setup.mesh,
        "callbacks": attacks.Callbacks(
            begin=reporter.attacking, progress=reporter.evaluating, warn=reporter.note
        ),
    }
    report = evaluation.evaluate(*everything, **how)
    last = evaluation.last_iterate(*everything, report, **how)
    seconds = time.monotonic() - began
    plan, left = setup.plan, cost.report(setup.graph, progress.keep_counts)
    unused = round(1 - left[config.cost] / plan.limit, 6)
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "budget": {"kind": config.cost, "target": plan.target, "unused": unused},
        "cost": left,
        "accuracy": {
            "natural": report.natural, "pgd": report.robust, "pgd-last": last.robust,
        },
        "attack": spec.describe() | {"images": len(measured)},
        "epochs": plan.epochs,
        "defense": progress.defense.name,
        "passes_per_image": round(progress.passes, 3),
        "rollbacks": list(progress.rollbacks),
        "wall_time_s": round(progress.seconds + seconds, 1),
        "images_per_s": round(progress.images / progress.seconds, 1),
        "network_sha256": checkpoint.digest(trained.variables),
        "identity": setup.identity,
        "config": configs.settings(config),
        "keep_counts": progress.keep_counts,
        **({"quantization": config.quantize} if progress.quantization else {}),
    }  # fmt: skip
