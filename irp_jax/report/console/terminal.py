"""Terminal output of a run: a live progress bar on a screen, plain lines in a file."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from irp_jax.config import Config, radius
from irp_jax.report.console.fitting import summary
from irp_jax.report.tables import measured_on
from irp_jax.training.plan import Plan

COLUMNS = (
    ("epoch", "epoch", "{:d}"),
    ("loss", "loss", "{:.3f}"),
    ("natural", "natural", "{:.1%}"),
    ("FGSM", "fgsm", "{:.1%}"),
    ("PGD-10", "pgd", "{:.1%}"),
    ("cost", "cost_ratio", "{:.4f}"),
    ("img/s", "images_per_s", "{:.0f}"),
    ("elapsed", "seconds", "{:.0f} s"),
)


COMPACT_AT_BEST = 0.4
"""Smallest ratio of the times of a compact and a dense step that the forecast assumes.

The time falls less than the MACs, because few channels use a processor less efficiently.
"""


class PlainConsole(Console):
    """A console that reports a reader that is gone as other output does."""

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError that is being handled; rich would end with exit code 1."""
        raise


def plain_console() -> Console:
    """Returns a console that does not colour numbers. Off a screen it is 1000 characters wide.

    Markup is off, so that a name such as my[red].npz is printed as it is.
    """
    console = PlainConsole(highlight=False, soft_wrap=True, markup=False)
    if console.is_terminal:
        return console
    return PlainConsole(highlight=False, soft_wrap=True, markup=False, width=1000)


def show_results(console: Console, results: Iterable[dict[str, Any]]) -> None:
    """Prints the tables of runs, fitted to the width of the console."""
    for table in summary(results, console.width):
        console.print(table, soft_wrap=False)


class Terminal:
    """The `Reporter` that prints for a person or a log file.

    Attributes:
        console: prints the lines; its `is_terminal` decides between a live bar and plain lines.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        """Makes a reporter without starting a progress bar.

        Args:
            console: prints the lines; standard output if None.
            quiet: whether nothing is shown at all.
        """
        self.console = Console(quiet=True) if quiet else console or plain_console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._segments = 0
        self._probed = ""
        self._config: Config | None = None
        self._plan: Plan | None = None
        self._done = 0

    def note(self, message: str) -> None:
        """Prints one line."""
        self.console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Prints one line as a warning, in yellow."""
        self.console.print("warning: " + message, markup=False, highlight=False, style="yellow")

    def begin(self, config: Config, plan: Plan, done: int) -> None:
        """Announces that training starts, or resumes after `done` steps."""
        self._config, self._plan, self._done = config, plan, done
        self.note(
            f"{config.model} on {config.dataset}: {plan.epochs} epoch{'s' * (plan.epochs > 1)} "
            f"of {plan.steps_per_epoch} steps, "
            f"{config.defense} at radius {radius(config.epsilon)}, "
            f"budget {config.budget} of {config.cost} ({plan.ratio:.4f} of dense), "
            f"{_compaction_text(plan)}{_warm_up_text(plan)}; the first step compiles"
        )
        self.note(" ".join(f"{title:>8}" for title, _, _ in COLUMNS))
        self._open("training", plan.steps, done)

    def progress(self, steps: int, images_per_s: float, metrics: dict[str, float]) -> None:
        """Updates the bar after `steps` more training steps."""
        self._done += steps
        self._segments += 1
        assert self._plan is not None
        if self._segments == 2:  # the first one compiled
            self._forecast(images_per_s)
        if self._bar is not None and self._task is not None:
            text = (
                f"loss {metrics['loss']:.3f} train {metrics['train_accuracy']:.1%} {self._probed}"
                f"cost {metrics['cost_ratio']:.3f}>{self._plan.ratio:.3f} {images_per_s:.0f} img/s"
            )
            self._bar.update(self._task, completed=self._done, facts=text)

    def back_to(self, done: int) -> None:
        """Resets the bar after a roll back to step `done`."""
        self._done, self._segments = done, 0
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def _forecast(self, images_per_s: float) -> None:
        """Prints the estimated remaining time.

        A step of the compact network is assumed to take the budget's share of a dense step, but at
        least `COMPACT_AT_BEST` of it.
        """
        assert self._plan is not None and self._config is not None
        plan = self._plan
        dense = max(0, plan.freeze_epoch * plan.steps_per_epoch - self._done)
        rest = plan.steps - self._done - dense
        if dense and self._config.granularity == "channel":
            rest = round(rest * max(plan.ratio, COMPACT_AT_BEST))
        seconds = (dense + rest) * self._config.batch_size / images_per_s
        if seconds > 60:
            self.note(f"{images_per_s:.0f} images/s: about {seconds / 60:.0f} minutes to go")

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints one aligned line for a finished epoch."""
        self._probed = f"natural {row['natural']:.1%} PGD {row['pgd']:.1%} "
        cells = (pattern.format(row[key]) for _, key, pattern in COLUMNS)
        state = (" frozen" * row["frozen"]) + (" int8" * row.get("quantized", False))
        self.note(" ".join(f"{cell:>8}" for cell in cells) + state)

    def attacking(self, name: str, robust: int) -> None:
        """Announces an attack and opens its bar."""
        self.note(f"{name}: {robust} images to attack")
        self._open(name, max(1, robust), 0)

    def evaluating(self, done: int, total: int, robust: int) -> None:
        """Updates the bar of the attack."""
        if self._bar is not None and self._task is not None:
            facts = f"{robust} images still robust"
            self._bar.update(self._task, completed=done, total=total, facts=facts)

    def end(self, results: dict[str, Any]) -> None:
        """Prints the final tables of a run."""
        self.close()
        self.console.print(cost_table(results["layers"]))
        self.console.print(result_table(results))

    def close(self) -> None:
        """Removes the live bar from the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _open(self, title: str, total: int, done: int) -> None:
        self.close()
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn(title), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=total, completed=done, facts="compiling")
        self._bar.start()


def _compaction_text(plan: Plan) -> str:
    """Returns a short text that says when the network is compacted, and rounded if it is."""
    rounded = "" if plan.quantize_epoch is None else f", int8 after epoch {plan.quantize_epoch}"
    if plan.freeze_epoch == 0:
        return f"compact from the start{rounded}"
    return f"masks frozen after epoch {plan.freeze_epoch}{rounded}"


def _warm_up_text(plan: Plan) -> str:
    """Returns a short text on the warm-up of the radius; empty if there is none."""
    if not plan.epsilon_steps:
        return ""
    return f", the radius grows for {plan.epsilon_steps / plan.steps_per_epoch:.2g} epochs"


def cost_table(rows: list[dict[str, Any]]) -> Table:
    """Returns a table of the channels, MACs and parameters left in each layer.

    Args:
        rows: as returned by `cost.table`.
    """
    table = Table(title="what is left of each layer")
    for title in ("layer", "in", "out", "MACs", "of dense", "params"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in rows:
        table.add_row(
            row["layer"],
            f"{row['channels_in']}/{row['dense_channels_in']}",
            f"{row['channels_out']}/{row['dense_channels_out']}",
            f"{row['macs']:,}",
            f"{row['macs'] / row['dense_macs']:.1%}",
            f"{row['params']:,}",
        )
    return table


def _attack_title(attack: dict[str, Any]) -> str:
    """Returns name, steps, restarts if several, norm and radius: "PGD-50-10, linf 0.03137"."""
    parts = [attack["name"].upper()]
    if "steps" in attack:
        parts.append(str(attack["steps"]))
    if attack.get("restarts", 1) > 1:
        parts.append(str(attack["restarts"]))
    return f"{'-'.join(parts)}, {attack['norm']} {attack['epsilon']:.4g}"


def attack_table(results: dict[str, Any]) -> Table:
    """Returns a table of the accuracy after each attack of a list, and the time of each attack."""
    attack = results["attack"]
    table = Table(title=f"{_attack_title(attack)}, {attack['images']} images")
    for title in ("after", "accuracy", "seconds"):
        table.add_column(title, justify="left" if title == "after" else "right")
    for name, accuracy in results["accuracy"].items():
        if name != attack["name"]:
            seconds = results["seconds"].get(name)
            table.add_row(name, f"{accuracy:.2%}", "" if seconds is None else f"{seconds:.0f}")
    return table


def curve_table(results: dict[str, Any]) -> Table:
    """Returns a table of the accuracy at each radius."""
    attack, curve = results["attack"], results["curve"]
    table = Table(title=f"{attack['name']}, {attack['norm']}, {attack['images']} images")
    for title in ("epsilon", "x 255", "accuracy"):
        table.add_column(title, justify="right")
    for epsilon, accuracy in zip(curve["epsilon"], curve["accuracy"], strict=True):
        table.add_row(f"{epsilon:.4g}", f"{255 * epsilon:.3g}", f"{accuracy:.2%}")
    return table


def corruption_table(results: dict[str, Any]) -> Table:
    """Returns a table of the accuracy under each common corruption at each severity."""
    table = Table(title="common corruptions, accuracy by severity")
    for title in ("corruption", "1", "2", "3", "4", "5", "mean"):
        table.add_column(title, justify="left" if title == "corruption" else "right")
    for name, values in results["corruptions"].items():
        mean = sum(values) / len(values)
        table.add_row(name, *(f"{value:.1%}" for value in (*values, mean)))
    return table


def result_table(results: dict[str, Any]) -> Table:
    """Returns the final table of a run, without the rows that `attack_table` has.

    Args:
        results: the content of results.json.
    """
    cost, attack = results["cost"], results["attack"]
    table = Table(
        title=f"{results['model']} on {measured_on(results)}, seed {results['seed']}",
        show_header=False,
    )
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    parts = set(results.get("seconds", {})) - {attack["name"]}
    for name, value in results["accuracy"].items():
        if name not in parts:
            title = _attack_title(attack) if name == attack["name"] else name
            table.add_row(title, f"{value:.2%}")
    table.add_row("MACs", f"{cost['macs'] / 1e6:.2f}M ({cost['macs_ratio']:.2%})")
    table.add_row("params", f"{cost['params']:,} ({cost['params_ratio']:.2%})")
    if "latency" in cost:
        table.add_row("latency", f"{cost['latency'] / 1e6:.3f} ms ({cost['latency_ratio']:.2%})")
    if "quantization" in results:
        table.add_row("quantization", str(results["quantization"]))
    table.add_row("epochs", str(results["epochs"]))
    table.add_row("time", f"{results['wall_time_s']:.0f} s")
    return table
