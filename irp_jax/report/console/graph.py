"""Tables of a channel graph."""

import math

from rich.table import Table

from irp_jax.graph import ChannelGraph, Extent
from irp_jax.pruning import cost, masks


def layer_table(graph: ChannelGraph) -> Table:
    """Returns a table of the layers: channels, the groups that each reads and writes, and cost."""
    table = Table(title="layers")
    for title in ("layer", "kind", "reads", "writes", "MACs", "params"):
        table.add_column(
            title, justify="right" if title in ("MACs", "params") else "left", overflow="fold"
        )
    for layer, row in zip(graph.layers, cost.table(graph), strict=True):
        table.add_row(
            layer.name,
            layer.kind,
            f"{row['channels_in']} {_groups(graph, layer.reads, layer.extents)}",
            f"{row['channels_out']} {_groups(graph, layer.writes, layer.extents)}",
            f"{row['macs']:,}",
            f"{row['params']:,}",
        )
    return table


def _groups(graph: ChannelGraph, axes: tuple[int, ...], extents: tuple[Extent, ...]) -> str:
    """Returns the groups of some axes, as numbers of `group_table`."""
    numbers = {name: number for number, name in enumerate(graph.groups, start=1)}
    found = sorted({numbers[group] for axis in axes for group in extents[axis].groups})
    if len(found) > 4:
        return f"(groups {found[0]} ... {found[-1]})"
    return f"(group{'s' * (len(found) > 1)} {', '.join(map(str, found))})" if found else ""


def group_table(graph: ChannelGraph) -> Table:
    """Returns a table of the channel groups. The channels of a group are pruned together."""
    table = Table(title="channel groups, named after the first layer that writes them")
    for title in ("number", "group", "channels", "written by", "read by"):
        table.add_column(
            title, justify="left" if title in ("group", "written by", "read by") else "right",
            overflow="fold",
        )  # fmt: skip
    for number, (name, size) in enumerate(graph.groups.items(), start=1):
        writers = [
            layer.name
            for layer in graph.layers
            if any(name in layer.extents[axis].groups for axis in layer.writes)
        ]
        readers = [
            layer.name
            for layer in graph.layers
            if any(name in layer.extents[axis].groups for axis in layer.reads)
        ]
        table.add_row(str(number), name, str(size), _first_names(writers), _first_names(readers))
    return table


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(names[:3]) + more


def whole_table(graph: ChannelGraph) -> Table:
    """Returns a table of the layers that are not pruned, with the reasons."""
    table = Table(title="kept whole")
    table.add_column("layer", overflow="fold")
    table.add_column("channels", justify="right")
    table.add_column("why", overflow="fold")
    for whole in graph.whole:
        table.add_row(whole.name, str(whole.channels), whole.reason)
    return table


def _rounded_up(share: float) -> str:
    """Rounds a share up to four decimals, so that it is still large enough."""
    return f"{math.ceil(share * 1e4) / 1e4:g}"


def summary(graph: ChannelGraph, apart: float) -> list[str]:
    """Returns lines with the dense cost and the smallest budget that the network allows.

    Args:
        graph: the channel graph of the network.
        apart: largest difference between the outputs of the masked and of the compact network, see
            `compaction.check`.
    """
    dense = cost.total(graph)
    least = cost.total(graph, masks.min_keep(graph, "channel"))
    one = cost.total(graph, dict.fromkeys(graph.groups, 1))
    if not graph.groups:
        return [
            f"{dense.macs:,} MACs per image, {dense.params:,} parameters",
            "nothing can be pruned: bin/train refuses this network",
        ]
    return [
        f"{dense.macs:,} MACs per image, {dense.params:,} parameters, in {len(graph.groups)} "
        f"channel groups; {1 - one.params / dense.params:.1%} of the parameters can be pruned",
        f"smallest budget: {_rounded_up(least.macs / dense.macs)} of the MACs, "
        f"{_rounded_up(least.params / dense.params)} of the parameters",
        f"masked and compact network differ by {apart:.1e} of the largest logit",
    ]
