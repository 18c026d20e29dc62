"""The page that compares several runs: one table, and all of them on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.core import BadInput, Report

from .graph_plot import draw_graph
from .html import Box, Page, cell, flat, table
from .metrics import honest, last, low_title, lower_is_better, per_peer, title_of
from .plots import Figure, class_means, curves, disagreement, heat
from .style import GREY, axis, figure_of, layout, stroke
from .summary import Line, lines, shared_metric
from .units import bytes_text, figure, seconds_text

__all__ = ["BETWEEN", "compare_html", "compare_page", "grid_of"]

BETWEEN = " | "
"""What joins the values of several factors in the name of a run."""


def compare_page(
    reports: Sequence[tuple[str, Report]],
    folder: str | Path,
    *,
    title: str = "Comparison",
    factors: tuple[str, str] = ("Row", "Column"),
) -> Path:
    """Write ``compare.html`` into the folder (made where missing), whole or not at all.

    Args:
        reports: (name, report), in the order to show.
        title: of the page.
        factors: what the two parts of the names are, where every name is ``"row | column"`` and they
            cross two factors; a grid of the metric is drawn then.

    Raises:
        BadInput: no reports, or two of one name.
    """
    folder = Path(folder)
    text = compare_html(reports, title=title, factors=factors)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.html"
    part = folder / "compare.html.part"
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def grid_of(names: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The rows and columns that names ``"row | column"`` make; more factors share the columns. None
    where the names cross no two factors."""
    pairs = [name.split(BETWEEN, 1) for name in names]
    if any(len(pair) != 2 for pair in pairs):
        return None
    rows, columns = ([*dict.fromkeys(pair[i] for pair in pairs)] for i in (0, 1))
    return (rows, columns) if len(rows) > 1 and len(columns) > 1 else None


def compare_html(
    reports: Sequence[tuple[str, Report]], *, title: str, factors: tuple[str, str] = ("Row", "Column")
) -> str:
    """The page's text. See :func:`compare_page`."""
    names = [name for name, _ in reports]
    if not names or len(set(names)) != len(names):
        raise BadInput("reports", names, "one or more runs, each with its own name")
    metric = shared_metric(reports)
    told = lines(reports, metric)
    made = Page(title, f"{len(reports)} runs" + (f", compared by {metric}." if metric else "."))
    made.notes(_notes(reports))
    made.section("Results", _results(told, metric), hint="The best of each column is set in bold.")
    grid = _grid(told, factors, metric)
    if grid is not None:
        heading = f"{title_of(metric or '')} of each pair"
        made.section(heading, made.plot("grid", grid, heading))
    if metric is not None:
        made.section(
            f"{title_of(metric)} over the run",
            made.plot("progress", curves(reports, metric, log_bytes=True), "all runs on the same axes"),
            hint="Mean of the peers. Bytes on a logarithmic axis.",
        )
    boxes: list[Box] = []

    def add(name: str, heading: str, drawn: Figure | None, hint: str = "") -> None:
        if drawn is not None:
            boxes.append(Box(name, heading, [("", drawn)], hint))

    if metric is not None:
        add(
            "final",
            "At the end",
            _final(reports, metric),
            "Whiskers: 10th to 90th percentile of the peers.",
        )
    add("disagreement", "How far the peers disagree", disagreement(reports), "Colours as in the table.")
    add("classes", "Accuracy by class", _classes(reports), "Mean over the honest peers.")
    graphs = [(name, drawn[0]) for name, r in reports if (drawn := draw_graph(r)) is not None]
    if graphs:
        boxes.append(Box("graph", "Who talks to whom", graphs))
    made.pairs(boxes)
    made.fold("Configurations", _settings(reports))
    return made.render()


def _notes(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """Each note once, with the runs that it is of."""
    found: dict[str, list[str]] = {}
    for name, report in reports:
        unfinished = [] if report.status == "done" else [f"This run was {report.status}."]
        for note in unfinished + report.notes:
            found.setdefault(note, []).append(name)
    return [
        f"{'All runs' if len(names) == len(reports) > 1 else ', '.join(names)}: {note}"
        for note, names in found.items()
    ]


def _results(told: list[Line], metric: str | None) -> str:
    def best(values: list[float | None], most: bool) -> float | None:
        known = [v for v in values if v is not None]
        return (max(known) if most else min(known)) if len(set(known)) > 1 else None

    up = not lower_is_better(metric)
    columns: list[tuple[str, list[float | None], Any, bool]] = [
        (title_of(metric or "Metric").split(" (")[0], [t.mean for t in told], figure, up),
        (low_title(metric), [t.worst for t in told], figure, up),
        ("Merged model", [t.merged for t in told], figure, up),
        ("Bytes sent", [float(t.sent) for t in told], bytes_text, False),
        ("Simulated time", [t.time for t in told], seconds_text, False),
        ("Wall time", [t.wall for t in told], seconds_text, False),
    ]
    columns = [c for c in columns if any(v is not None for v in c[1])]
    tops = [best(values, most) for _, values, _, most in columns]
    rows = []
    for at, line in enumerate(told):
        row = [cell(line.name, "", str(stroke(at)["color"]))]
        for (_, values, show, _), top in zip(columns, tops, strict=True):
            value = values[at]
            kind = "n best" if value is not None and value == top else "n"
            row.append(cell("–" if value is None else show(value), kind))
        rows.append(row)
    return table([("Run", ""), *((heading, "n") for heading, _, _, _ in columns)], rows)


def _final(reports: Sequence[tuple[str, Report]], metric: str) -> Figure:
    """Bars of the final means, with the spread of the honest peers."""
    names, means, up, down, colours = [], [], [], [], []
    for index, (name, report) in enumerate(reports):
        mean = last(report, metric)
        if mean is None:
            continue
        low = high = mean
        values = per_peer(report, metric)
        if values is not None:
            told = values[honest(report, len(values)) & torch.isfinite(values)]
            if len(told):
                low, high = (float(torch.quantile(told, q)) for q in (0.1, 0.9))
        names.append(name)
        means.append(mean)
        up.append(max(0.0, high - mean))
        down.append(max(0.0, mean - low))
        colours.append(stroke(index)["color"])
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": means,
        "marker": {"color": colours},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": up,
            "arrayminus": down,
            "color": GREY,
            "thickness": 1.5,
            "width": 4,
        },
        "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
    }
    shape = layout(max(280, 90 + 26 * len(names)), showlegend=False)
    shape["xaxis"] = axis(title_of(metric))
    shape["yaxis"] = axis(type="category", autorange="reversed", showgrid=False)
    return figure_of([trace], shape)


def _classes(reports: Sequence[tuple[str, Report]]) -> Figure | None:
    """Runs by classes, for the runs that have the first one's classes."""
    found = [(name, means) for name, r in reports if (means := class_means(r)) is not None]
    found = [(name, means) for name, means in found if means[0] == found[0][1][0]]
    if not found:
        return None
    trace = heat(found[0][1][0], [name for name, _ in found], [means[1] for _, means in found])
    trace["hovertemplate"] = "%{y}, class %{x}: %{z:.3f}<extra></extra>"
    trace["colorbar"]["title"]["text"] = "Accuracy"
    shape = layout(max(280, 90 + 24 * len(found)))
    shape["xaxis"] = axis("Class", type="category", showgrid=False)
    shape["yaxis"] = axis(type="category", autorange="reversed", showgrid=False)
    return figure_of([trace], shape)


def _grid(told: list[Line], factors: tuple[str, str], metric: str | None) -> Figure | None:
    """The metric over two factors, where the names cross them."""
    found = grid_of([line.name for line in told])
    if found is None or metric is None:
        return None
    rows, columns = found
    value = {line.name: line.mean for line in told}
    z = [[value.get(f"{r}{BETWEEN}{c}") for c in columns] for r in rows]
    trace = heat(columns, rows, [[float("nan") if v is None else v for v in row] for row in z])
    trace["colorbar"]["title"]["text"] = title_of(metric)
    trace["text"] = [[figure(v) for v in row] for row in z]
    trace["texttemplate"] = "%{text}"
    trace["hovertemplate"] = "%{y}, %{x}: %{z:.4g}<extra></extra>"
    shape = layout(max(260, 110 + 34 * len(rows)))
    shape["xaxis"] = axis(factors[1], type="category", showgrid=False)
    shape["yaxis"] = axis(factors[0], type="category", autorange="reversed", showgrid=False)
    return figure_of([trace], shape)


def _settings(reports: Sequence[tuple[str, Report]]) -> str:
    """The fields in which the runs differ, then those that they share."""
    columns = [(name, dict(flat(r.config))) for name, r in reports]
    keys = dict.fromkeys(key for _, config in columns for key in config)
    values = {key: [config.get(key, "–") for _, config in columns] for key in keys}
    differ = {key: row for key, row in values.items() if len(set(row)) > 1}
    shared = {key: row[0] for key, row in values.items() if key not in differ}
    parts = []
    if differ:
        rows = [[cell(key, "key"), *(cell(v, "value") for v in row)] for key, row in differ.items()]
        parts.append(table([("Differs", ""), *((name, "") for name, _ in columns)], rows))
    if shared:
        rows = [[cell(key, "key"), cell(v, "value")] for key, v in shared.items()]
        parts.append(table([("The same in all", ""), ("Value", "")], rows))
    return "<br>".join(parts)
