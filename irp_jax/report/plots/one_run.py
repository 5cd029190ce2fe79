"""One run: accuracy and cost over the epochs, and the channels left in each layer."""

from matplotlib.figure import Figure

from irp_jax.report.plots.style import INK
from irp_jax.report.tables import Results


def run_picture(results: Results) -> Figure:
    """Draws one run: cost and accuracy over the epochs, and the channels left in each layer.

    Args:
        results: the results of a run with channel granularity; must hold `history` and `layers`.
    """
    history, layers = results["history"], results["layers"]
    figure = Figure((11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for key, label in (
        ("natural", "natural accuracy"),
        ("pgd", "PGD-10 accuracy"),
        ("cost_ratio", "cost left"),
    ):
        color = INK["cost" if key == "cost_ratio" else key]
        style = "--" if key == "cost_ratio" else "-"
        left.plot(epochs, [100 * row[key] for row in history], style, color=color, label=label)
    frozen = next((row["epoch"] for row in history if row["frozen"]), None)
    if frozen is not None:
        left.axvline(frozen - 1, color=INK["cost"], linewidth=0.8)
        left.annotate(" masks frozen,\n network compacted", (frozen - 1, 2), fontsize=8)
    left.set(xlabel="epoch", ylabel="%", ylim=(0, 103), title=_headline(results))
    left.legend(frameon=False, fontsize=8)
    positions = range(len(layers))
    right.bar(
        positions, [row["dense_channels_out"] for row in layers], color=INK["dense"], label="before"
    )
    right.bar(positions, [row["channels_out"] for row in layers], color=INK["kept"], label="left")
    right.set_xticks(positions, [row["layer"] for row in layers], rotation=90, fontsize=6)
    ratio = results["cost"]["macs_ratio"]
    right.set(
        ylabel="output channels", title=f"{results['model']}: {ratio:.1%} of the operations left"
    )
    right.legend(frameon=False, fontsize=8)
    return figure


def _headline(results: Results) -> str:
    """Returns a short title for the method of a run."""
    words = {"lagrangian": "learned together, within the budget", "hinge": "as published"}
    return words.get(results["method"], f"baseline: {results['method']}")
