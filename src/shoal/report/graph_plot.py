"""The graph, drawn: peers coloured by their metric, hostile ones marked."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import networkx as nx
import torch

from shoal.core import Graph, Report

from .metrics import honest, paths, per_peer, primary, title_of
from .plots import Figure
from .style import BAD, COLOURS, SCALE, figure_of, layout
from .units import figure

__all__ = ["MOST", "draw_graph"]

MOST = 300
"""Peers drawn at most."""
_MOST_EDGES = 3000
_SHELL = 6.0
"""Mean degree above which a circle reads better than springs."""


def draw_graph(report: Report) -> tuple[Figure, str] | None:
    """(figure, what a reader must know of it or ""), or None where no peer talked to another.

    It is the graph of the first round; where links were used that it lacks, the words say so.

    Above 300 peers, the 300 nearest to peer 0 are drawn; above 3,000 links, every k-th of them.
    """
    graph = report.graph
    if graph is None or graph.n < 2 or paths(report) != "peers":
        return None
    shown = _nearest(graph, MOST)
    drawn = torch.zeros(graph.n, dtype=torch.bool)
    drawn[shown] = True
    both = drawn[graph.src] & drawn[graph.dst]
    pairs = zip(graph.src[both].tolist(), graph.dst[both].tolist(), strict=True)
    links = sorted({(min(a, b), max(a, b)) for a, b in pairs})
    place = _layout(shown, links)
    every = math.ceil(len(links) / _MOST_EDGES) or 1
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for a, b in links[::every]:
        lines_x += [place[a][0], place[b][0], None]
        lines_y += [place[a][1], place[b][1], None]
    edges = {
        "type": "scatter",
        "mode": "lines",
        "x": lines_x,
        "y": lines_y,
        "line": {"color": "rgba(97,110,124,0.35)", "width": 1 if len(links) < 500 else 0.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    shape = layout(420, hovermode="closest", margin={"l": 8, "r": 8, "t": 36, "b": 8})
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    shape["xaxis"] = dict(hidden)
    shape["yaxis"] = hidden | {"scaleanchor": "x"}
    words = []
    if _changes(report, graph):
        words.append("The graph of the first round; later rounds had other links.")
    if len(shown) < graph.n:
        words.append(f"{len(shown)} of {graph.n:,} peers are drawn: those nearest to peer 0.")
    if every > 1:
        words.append(f"One of {every} links is drawn.")
    return figure_of([edges, *_nodes(report, graph, shown, place)], shape), " ".join(words)


def _changes(report: Report, graph: Graph) -> bool:
    src, dst, _ = report.links
    between = (src < graph.n) & (dst < graph.n)
    used = (src * graph.n + dst)[between]
    return not bool(torch.isin(used, graph.src * graph.n + graph.dst).all())


def _nodes(
    report: Report, graph: Graph, shown: list[int], place: dict[int, tuple[float, float]]
) -> list[dict[str, Any]]:
    n = graph.n
    metric = primary(report)
    values = per_peer(report, metric)
    if values is not None and len(values) != n:
        values = None
    good = honest(report, n).tolist()
    degree = graph.in_degree().tolist()
    size = 16 if len(shown) <= 40 else 11 if len(shown) <= 120 else 7
    # The colours span the honest peers only: hostile ones are often far off, and are drawn in red.
    told = [] if values is None else [values[p].item() for p in shown if good[p]]
    told = [v for v in told if math.isfinite(v)]
    ends = (min(told), max(told)) if told else (0.0, 1.0)
    if ends[1] - ends[0] < 1e-6:
        ends = (ends[0] - 0.05, ends[1] + 0.05)
    traces = []
    for label, kind, symbol in (("Honest peer", True, "circle"), ("Hostile peer", False, "x")):
        members = [p for p in shown if good[p] is kind]
        if not members:
            continue
        words = [
            f"peer {p}<br>{degree[p]} neighbours"
            + (
                ""
                if values is None or metric is None
                else f"<br>{title_of(metric)} {figure(float(values[p]))}"
            )
            for p in members
        ]
        marker: dict[str, Any] = {"size": size, "symbol": symbol, "line": {"color": "#ffffff", "width": 1}}
        if values is not None and told and kind:
            marker |= {
                "color": [v if math.isfinite(v) else None for v in values[torch.tensor(members)].tolist()],
                "colorscale": SCALE,
                "cmin": ends[0],
                "cmax": ends[1],
                "showscale": True,
                "colorbar": {
                    "thickness": 10,
                    "outlinewidth": 0,
                    "title": {"text": title_of(metric or ""), "side": "right"},
                },
            }
        else:
            marker["color"] = COLOURS[0] if kind else BAD
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [place[p][0] for p in members],
                "y": [place[p][1] for p in members],
                "marker": marker,
                "name": label,
                "text": words,
                "hovertemplate": "%{text}<extra></extra>",
                "showlegend": not all(good),
            }
        )
    return traces


def _nearest(graph: Graph, most: int) -> list[int]:
    """Up to ``most`` peers, by hops from peer 0 (unreached ones follow by number)."""
    if graph.n <= most:
        return list(range(graph.n))
    near: dict[int, list[int]] = {}
    for a, b in zip(graph.src.tolist(), graph.dst.tolist(), strict=True):
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    seen = {0: None}
    queue = deque([0])
    while queue and len(seen) < most:
        for b in sorted(near.get(queue.popleft(), ())):
            if b not in seen and len(seen) < most:
                seen[b] = None
                queue.append(b)
    for peer in range(graph.n):
        if len(seen) == most:
            break
        seen.setdefault(peer, None)
    return sorted(seen)


def _layout(shown: list[int], links: list[tuple[int, int]]) -> dict[int, tuple[float, float]]:
    drawn = nx.Graph()
    drawn.add_nodes_from(shown)
    drawn.add_edges_from(links)
    degrees = [d for _, d in drawn.degree]
    ring = all(d == 2 for d in degrees) and nx.is_connected(drawn)
    if ring:
        order = [a for a, _ in nx.find_cycle(drawn)]
        places = dict(zip(order, nx.circular_layout(order).values(), strict=True))
    elif sum(degrees) / len(degrees) > _SHELL:
        places = nx.circular_layout(drawn)
    else:
        places = nx.spring_layout(drawn, seed=0, iterations=80)
    return {p: (round(float(x), 4), round(float(y), 4)) for p, (x, y) in places.items()}
