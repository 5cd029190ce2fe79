"""How a trained network shows itself in a notebook."""

import html
from collections.abc import Iterable

from irp_jax.inference.network import TrainedNetwork


def network_tables(network: TrainedNetwork) -> str:
    """Returns small tables in HTML: cost, accuracy if known, and what was kept."""
    cost, dense = network.cost, network.record["groups"]
    costs = [
        (name, f"{cost[key]:,}", f"{cost[f'dense_{key}']:,}", f"{cost[f'{key}_ratio']:.1%}")
        for key, name in (("macs", "MACs per image"), ("params", "parameters"))
    ]
    accuracy = (network.results or {}).get("accuracy", {})
    kept = [
        (name, f"{count:,}", f"{dense[name]:,}" if name in dense else "")
        for name, count in network.keep_counts.items()
    ]
    title = f"{network.name}: {len(network.class_names)} classes, images {network.image_shape}"
    parts = [
        f"<p><b>{html.escape(title)}</b></p>",
        _table(("cost", "left", "dense", "share"), costs),
        _table(("accuracy", "%"), [(k, f"{100 * v:.2f}") for k, v in accuracy.items()]),
        f"<details><summary>{len(kept)} groups</summary>"
        f"{_table(('group', 'kept', 'dense'), kept)}</details>",
    ]
    return f"<div>{''.join(parts)}</div>"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table with escaped cells; nothing if it has no rows."""
    head = "".join(f"<th scope='col'>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return body and f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
