"""The plots of a report, each as a Plotly figure in plain data: curves, spread, classes, peers, links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from shoal.core import Report

from .metrics import honest, low_title, named, paths, per_peer, primary, title_of
from .style import BAD, COLOURS, GREY, LINE, SCALE, axis, figure_of, layout, log_axis, stroke
from .units import bytes_text, figure, seconds_text

__all__ = [
    "Figure",
    "against",
    "curves",
    "disagreement",
    "holdings",
    "peer_histogram",
    "per_class",
    "small_curves",
]

Figure = dict[str, Any]
_MOST_POINTS = 2000
_MOST_ROWS = 100
_AXES = (("tick", "Rounds"), ("bytes", "Bytes sent"), ("time", "Simulated time (s)"))


def _thin(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """At most ``_MOST_POINTS`` points, the last among them."""
    step = math.ceil(len(xs) / _MOST_POINTS) or 1
    if step == 1:
        return xs, ys
    kept = sorted({*range(0, len(xs), step), len(xs) - 1})
    return [xs[i] for i in kept], [ys[i] for i in kept]


def _hover(column: str, x: float) -> str:
    if column == "bytes":
        return bytes_text(x)
    return seconds_text(x) if column == "time" else f"round {x:g}"


def against(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, str]]:
    """The x axes that say something: rounds always; bytes and time where there are any and they are
    not the rounds themselves."""
    rows = [row for _, r in reports for row in r.rows]
    return [
        (column, title)
        for column, title in _AXES
        if column == "tick" or any(row.get(column, 0) not in {0, row.get("tick")} for row in rows)
    ]


def curves(reports: Sequence[tuple[str, Report]], metric: str, *, log_bytes: bool = False) -> Figure:
    """One metric against rounds, bytes and simulated time, side by side with one y axis.

    One report: the mean over the peers, the worst decile, and the merged model where measured.
    Several: the mean of each.
    """
    panels = against(reports)
    gap = 0.05
    width = (1 - gap * (len(panels) - 1)) / len(panels)
    shape = layout(360, hovermode="closest")
    shape["yaxis"] = axis(title_of(metric))
    traces: list[dict[str, Any]] = []
    single = len(reports) == 1
    shape["showlegend"] = not single or len(_lines(reports[0][1], metric)) > 1
    for at, (column, title) in enumerate(panels):
        number = "" if at == 0 else str(at + 1)
        start = at * (width + gap)
        more: dict[str, Any] = {"domain": [start, start + width], "anchor": "y"}
        logarithmic = column == "bytes" and log_bytes
        if logarithmic:
            sent = [row["bytes"] for _, r in reports for row in r.rows if row.get("bytes", 0) > 0]
            shape[f"xaxis{number}"] = log_axis(title, sent, bytes_text, **more)
        else:
            if column == "bytes":
                more |= {"exponentformat": "SI", "ticksuffix": "B", "nticks": 5}
            shape[f"xaxis{number}"] = axis(title, **more)
        for index, (name, report) in enumerate(reports):
            lines = _lines(report, metric) if single else [(metric, name, stroke(index))]
            for key, label, line in lines:
                xs, ys = _thin(*report.curve(key, column))
                if logarithmic:
                    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if x > 0]
                    xs, ys = [x for x, _ in kept], [y for _, y in kept]
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if len(xs) <= 25 else "lines",
                        "x": xs,
                        "y": ys,
                        "name": label,
                        "legendgroup": label,
                        "showlegend": at == 0,
                        "line": line,
                        "marker": {"size": 5},
                        "xaxis": f"x{number}",
                        "text": [_hover(column, x) for x in xs],
                        "hovertemplate": "%{text}: %{y:.4g}<extra>" + label + "</extra>",
                    }
                )
    return figure_of(traces, shape)


def _lines(report: Report, metric: str) -> list[tuple[str, str, dict[str, Any]]]:
    columns = {k for row in report.rows for k, v in row.items() if v is not None}
    spread = f"{metric}_p10" in columns
    found = [(metric, "Mean of the peers" if spread else title_of(metric), stroke(0))]
    if spread:
        found.append((f"{metric}_p10", low_title(metric), stroke(1) | {"dash": "dot"}))
    if f"merged_{metric}" in columns:
        found.append((f"merged_{metric}", "Merged model", stroke(2) | {"dash": "dash"}))
    return found


def small_curves(reports: Sequence[tuple[str, Report]], metric: str, *, log: bool = False) -> Figure:
    """One metric against rounds, small and without legend; ``log``: on a logarithmic axis. Each report
    keeps its colour where others have no such metric."""
    drawn = [(name, *_thin(*report.curve(metric))) for name, report in reports]
    traces: list[dict[str, Any]] = []
    values = [y for _, _, ys in drawn for y in ys if y > 0]
    # Exact zeros (all models equal before the first round) have no place on a log axis.
    # Within less than a factor of three a logarithmic axis has hardly a tick to read a value from.
    log = log and bool(values) and max(values) > 3 * min(values)
    for index, (name, xs, ys) in enumerate(drawn):
        kept = [(x, y) for x, y in zip(xs, ys, strict=True) if not log or y > 0]
        if not kept:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for x, _ in kept],
                "y": [y for _, y in kept],
                "name": name,
                "line": stroke(index),
                "hovertemplate": "round %{x}: %{y:.4g}<extra>" + name + "</extra>",
            }
        )
    shape = layout(280, showlegend=False)
    shape["xaxis"] = axis("Rounds")
    shape["yaxis"] = log_axis(title_of(metric), values, figure) if log else axis(title_of(metric))
    return figure_of(traces, shape)


def disagreement(reports: Sequence[tuple[str, Report]]) -> Figure | None:
    """The models' distance to their mean over the rounds (log), where it was measured."""
    if not any(row.get("consensus") for _, r in reports for row in r.rows):
        return None
    drawn = small_curves(reports, "consensus", log=True)
    drawn["layout"]["yaxis"]["title"]["text"] = "Disagreement (RMS)"
    return drawn


def peer_histogram(report: Report) -> Figure | None:
    """How the primary metric is spread over the peers at the end; hostile peers apart."""
    metric = primary(report)
    values = per_peer(report, metric)
    if metric is None or values is None or not bool(torch.isfinite(values).any()):
        return None
    good = honest(report, len(values))
    finite = values[torch.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    size = (high - low) / 15
    traces = []
    for label, mask, colour in (("Honest", good, COLOURS[0]), ("Hostile", ~good, BAD)):
        told = values[mask & torch.isfinite(values)]
        if not len(told):
            continue
        at = ((told - low) / size).floor().long().clamp(0, 14)
        traces.append(
            {
                "type": "bar",
                "x": [low + (i + 0.5) * size for i in range(15)],
                "y": torch.bincount(at, minlength=15).tolist(),
                "width": size,
                "name": label,
                "marker": {"color": colour, "line": {"color": "#ffffff", "width": 1}},
                "text": [f"{low + i * size:.4g} to {low + (i + 1) * size:.4g}" for i in range(15)],
                "textposition": "none",
                "hovertemplate": "%{text}: %{y} peers<extra></extra>",
            }
        )
    shape = layout(280, barmode="stack", showlegend=len(traces) > 1, bargap=0)
    shape["legend"]["traceorder"] = "normal"
    shape["xaxis"] = axis(f"{title_of(metric)} at the end", range=[low, high])
    shape["yaxis"] = axis("Peers", tickformat="d", rangemode="tozero")
    return figure_of(traces, shape)


def class_table(report: Report) -> tuple[list[str], torch.Tensor] | None:
    """(class names, accuracy [n, C] or [1, C]) from ``final["per_class"]``, where it is there."""
    given = report.final.get("per_class")
    if not given:
        return None
    table = torch.as_tensor(given, dtype=torch.float64)
    table = table[None] if table.ndim == 1 else table
    names = report.final.get("class_names") or []
    if len(names) != table.shape[1]:
        names = [str(i) for i in range(table.shape[1])]
    return [str(n) for n in names], table


def class_means(report: Report) -> tuple[list[str], list[float]] | None:
    """(class names, mean accuracy over the honest peers [C])."""
    found = class_table(report)
    if found is None:
        return None
    names, table = found
    if len(table) > 1:
        good = honest(report, len(table))
        table = table[good] if bool(good.any()) else table
    return names, table.nanmean(0).tolist()


def per_class(report: Report) -> Figure | None:
    """Accuracy by class: the mean over the honest peers; whiskers from the 10th to the 90th percentile."""
    found, means = class_table(report), class_means(report)
    if found is None or means is None:
        return None
    names, table = found
    trace: dict[str, Any] = {
        "type": "bar",
        "x": names,
        "y": means[1],
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "class %{x}: %{y:.3f}<extra></extra>",
    }
    if len(table) > 1:
        good = honest(report, len(table))
        told = table[good] if bool(good.any()) else table
        low, high = (torch.nanquantile(told, q, dim=0) for q in (0.1, 0.9))
        mean = torch.tensor(means[1], dtype=torch.float64)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": (high - mean).clamp_min(0).tolist(),
            "arrayminus": (mean - low).clamp_min(0).tolist(),
            "color": GREY,
            "thickness": 1,
            "width": 3,
        }
    shape = layout(280, showlegend=False)
    shape["xaxis"] = axis("Class", type="category")
    shape["yaxis"] = axis("Accuracy", range=[0, 1.02])
    return figure_of([trace], shape)


def holdings(report: Report) -> Figure | None:
    """How many examples of each class each peer holds (the first 100 peers)."""
    counts = report.final.get("class_counts")
    if not counts or not isinstance(counts[0], list | tuple):
        return None
    shown = counts[:_MOST_ROWS]
    names = report.final.get("class_names") or []
    classes = (
        [str(n) for n in names] if len(names) == len(shown[0]) else list(map(str, range(len(shown[0]))))
    )
    trace = heat(classes, [str(i) for i in range(len(shown))], [list(map(float, r)) for r in shown])
    trace["hovertemplate"] = "peer %{y}, class %{x}: %{z} examples<extra></extra>"
    trace["colorbar"]["title"]["text"] = "Examples"
    shape = layout(280, showlegend=False)
    shape["xaxis"] = axis("Class", type="category", showgrid=False)
    shape["yaxis"] = axis("Peer", type="category", autorange="reversed", showgrid=False, nticks=12)
    return figure_of([trace], shape)


def heat(xs: list[str], ys: list[str], z: list[list[float]]) -> dict[str, Any]:
    """A heat map's trace; values that are not finite stay empty."""
    return {
        "type": "heatmap",
        "x": xs,
        "y": ys,
        "z": [[v if math.isfinite(v) else None for v in row] for row in z],
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1 if len(ys) <= 40 else 0,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickcolor": LINE,
            "title": {"text": "", "side": "right"},
        },
    }


def sentence(report: Report) -> str:
    """What ran, in one sentence."""
    config = report.config
    task = config.get("task") or {}
    network = config.get("network") or {}
    n, rounds = config.get("peers"), config.get("rounds")
    who = f"{n} peers" if n else "The peers"
    text = f"{who} ran {report.system}" + (f" for {rounds} rounds" if rounds else "")
    if isinstance(task, dict):
        detail = ", ".join(filter(None, (named(task.get(k)) for k in ("data", "partition", "model"))))
        name = named(task)
        text += f" on the task {name}" + (f" ({detail})" if detail else "") if name else ""
    if isinstance(network, dict) and network:
        graph, rule, codec = (named(network.get(k)) for k in ("graph", "rule", "codec"))
        way = paths(report)
        text += f", over the graph {graph}" if graph and way == "peers" else ""
        text += {"peers": "", "server": ", through a server", "": ", without messages"}[way]
        text += f", messages through {codec}" if codec else ""
        text += f", combined by {rule}" if rule and rule != "mean" else ""
    hostile = int(report.hostile.sum()) if report.hostile is not None else 0
    if hostile:
        attack = named(network.get("attack")) if isinstance(network, dict) else ""
        text += f"; {hostile} hostile" + (f" ({attack})" if attack else "")
    seed = config.get("seed")
    return text + (f". Seed {seed}." if seed is not None else ".")
