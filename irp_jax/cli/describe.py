"""bin/describe: shows the channels, layers and cost of a network, and what cannot be pruned."""

import dataclasses
import re

from irp_jax import traced
from irp_jax.cli.common import main
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError
from irp_jax.report.console.graph import group_table, layer_table, summary, whole_table
from irp_jax.report.console.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Show which channels of a network can be pruned, which cannot and why, and what it costs."""

    model: str = "resnet20"
    """Name of a model of this package, or FILE.py:NAME for a network of your own."""
    image_shape: str = "32,32,3"
    """Height, width and channels of an image, separated by commas."""
    classes: int = 10
    """Number of classes."""
    width: float = 1.0
    """Multiplies every channel count of a model of this package."""


def describe(arguments: list[str]) -> None:
    """Prints the tables of a network."""
    options = parse(Options, arguments, "bin/describe", Options())
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4}){2}", options.image_shape):
        raise UserError(
            f"--image-shape takes height,width,channels, for instance 32,32,3: got "
            f"{options.image_shape!r}"
        )
    if options.classes < 2:
        raise UserError(f"--classes must be at least 2, got {options.classes}")
    if not 0 < options.width <= 64:
        raise UserError(f"--width must be positive and at most 64, got {options.width:g}")
    height, width, channels = map(int, options.image_shape.split(","))
    model = traced.named(options.model, options.width, (height, width, channels), options.classes)
    apart = traced.check(model)
    console = plain_console()
    console.print(layer_table(model.graph))
    console.print(group_table(model.graph))
    if model.graph.whole:
        console.print(whole_table(model.graph))
    for line in summary(model.graph, apart):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main(describe)
