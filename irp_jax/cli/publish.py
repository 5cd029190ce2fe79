"""bin/publish: writes a trained network, with a model card, as the Hugging Face hub holds it."""

import dataclasses
from pathlib import Path

from irp_jax import publishing
from irp_jax.cli.common import main
from irp_jax.cli.flags import parse
from irp_jax.report.console.terminal import plain_console
from irp_jax.report.robustbench import Paper


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained network to a folder: weights as safetensors, config.json, model.onnx,
    robustbench.json and the model card README.md."""

    run: str
    """Workdir of the finished run, or a saved network."""
    into: str
    """Folder to create. Its name becomes the name of the network. A folder of the same network is
    replaced."""
    results: str | None = None
    """Results of the run, for instance of bin/sweep with more attacks. Default: results.json of the
    run."""
    model: str | None = None
    """FILE.py:NAME of a network of your own, which model.onnx needs."""
    tflite: bool = False
    """Also write model.tflite, for LiteRT. Its converter is installed on first use."""
    title: str | None = None
    """Title of the paper in robustbench.json. Default: the name of the network."""
    authors: str = ""
    """Authors there, separated by commas."""
    link: str = ""
    """Address of the paper there."""
    venue: str = ""
    """Where the paper was published, there."""


def publish(arguments: list[str]) -> None:
    """Writes the folder of the network."""
    options = parse(Options, arguments, "bin/publish")
    console = plain_console()
    run, into = Path(options.run), Path(options.into)
    results = run / "results.json" if options.results is None else Path(options.results)
    paper = Paper(
        title=options.title or into.name, authors=options.authors, link=options.link,
        venue=options.venue,
    )  # fmt: skip
    publishing.publish(
        run, results, into, lambda line: console.print(line, markup=False),
        model=options.model, paper=paper, with_tflite=options.tflite,
    )  # fmt: skip
    console.print(f"written to {options.into}: see its README.md", markup=False)


if __name__ == "__main__":
    main(publish)
