"""bin/publish: exports a trained network with a model card."""

import dataclasses
from pathlib import Path

from irp_jax import zoo
from irp_jax.cli.run import main, parse
from irp_jax.report.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Export a trained network from its run, without the training state, with a model card."""

    run: str
    """Workdir of the finished run."""
    into: str
    """Folder to create. Its name becomes the name of the network."""
    results: str | None = None
    """Results of the run, for instance of bin/sweep with more attacks. Default: results.json of the
    run."""


def publish(arguments: list[str]) -> None:
    """Writes the folder of the network."""
    options = parse(Options, arguments, "bin/publish")
    console = plain_console()
    run = Path(options.run)
    results = run / "results.json" if options.results is None else Path(options.results)
    zoo.publish(run, results, Path(options.into), lambda line: console.print(line, markup=False))
    console.print(f"written to {options.into}: see its README.md", markup=False)


if __name__ == "__main__":
    main(publish)
