"""bin/publish: a trained network with its model card, to hand on."""

import dataclasses
from pathlib import Path

from irp_jax import zoo
from irp_jax.cli.run import main, parse
from irp_jax.report.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Copy a trained network out of its run, without what training needed, beside a model card."""

    run: str
    """The finished run's workdir."""
    into: str
    """The folder to make; its name is the network's."""
    results: str | None = None
    """The run's results, from bin/sweep with more attacks. Default: results.json of the run."""


def publish(arguments: list[str]) -> None:
    """Writes the folder."""
    options = parse(Options, arguments, "bin/publish")
    console = plain_console()
    run = Path(options.run)
    results = run / "results.json" if options.results is None else Path(options.results)
    zoo.publish(run, results, Path(options.into), lambda line: console.print(line, markup=False))
    console.print(f"written to {options.into}: see its README.md", markup=False)


if __name__ == "__main__":
    main(publish)
