"""Copies of a run's metrics.jsonl for TensorBoard and Weights & Biases, to watch the run.

metrics.jsonl is the record. A copy holds the numbers of its rows, one point for each epoch. It does
not hold an epoch twice if the run is resumed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from irp_jax import files
from irp_jax.errors import UserError, extra

Row = dict[str, Any]
"""A row of metrics.jsonl."""


class Log(Protocol):
    """A copy of metrics.jsonl."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Makes the copy hold the rows of earlier epochs: at the start and after a rollback."""

    def add(self, row: Row) -> None:
        """Adds the row of an epoch."""

    def close(self) -> None:
        """Writes what is not written yet."""


def make(names: str, workdir: Path, settings: dict[str, Any]) -> list[Log]:
    """Returns the logs with these names. It writes nothing.

    Args:
        names: "tensorboard", "wandb", both with a comma, or empty.
        workdir: folder of the run. The logs are in its folders "tensorboard" and "wandb".
        settings: of the run.

    Raises:
        UserError: the package of a log is not installed.
    """
    kinds: dict[str, type[TensorBoard | WeightsAndBiases]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return [kinds[name](workdir, settings) for name in dict.fromkeys(names.split(",")) if name]


@contextlib.contextmanager
def closed(logs: Sequence[Log]) -> Iterator[None]:
    """Closes the logs at the end of the block, also after an error."""
    with contextlib.ExitStack() as stack:
        for log in logs:
            stack.callback(log.close)
        yield


def numbers(row: Row) -> dict[str, float]:
    """Returns the numbers of a row without the epoch, as floats.

    >>> numbers({"epoch": 2, "defense": "pgd", "loss": 1.5, "frozen": True})
    {'loss': 1.5, 'frozen': 1.0}
    """
    found = {key: value for key, value in row.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in found.items() if key != "epoch"}


class TensorBoard:
    """Event files in WORKDIR/tensorboard. They are written anew from the rows at each start."""

    def __init__(self, workdir: Path, settings: dict[str, Any]) -> None:
        with extra("tensorboard"):
            import tensorboardX
        self._open = tensorboardX.SummaryWriter
        self._folder = workdir / "tensorboard"
        self._writer: Any = None

    def begin(self, rows: Sequence[Row]) -> None:
        self.close()
        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = self._open(str(self._folder))
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases. WORKDIR/wandb.json has its id and the last epoch that it holds.

    Nothing can be removed from such a run. It keeps the first row of an epoch that the guard undid.
    """

    def __init__(self, workdir: Path, settings: dict[str, Any]) -> None:
        with extra("wandb"):
            import wandb
        self._wandb, self._workdir, self._settings = wandb, workdir, settings
        self._run: Any = None
        self._last = 0

    def begin(self, rows: Sequence[Row]) -> None:
        if self._run is None:
            known = files.read_json(self._workdir / "wandb.json") or {"id": None, "epoch": 0}
            self._last = known["epoch"]
            try:
                self._run = self._wandb.init(
                    project="irp_jax", name=self._workdir.name, dir=str(self._workdir),
                    config=self._settings, id=known["id"], resume="allow",
                )  # fmt: skip
            except self._wandb.errors.Error as error:
                raise UserError(f"--log-to=wandb: {error}") from error
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        if row["epoch"] <= self._last:
            return
        self._run.log(numbers(row), step=row["epoch"])
        self._last = row["epoch"]
        known = {"id": self._run.id, "epoch": self._last}
        files.write_json(self._workdir / "wandb.json", known)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
