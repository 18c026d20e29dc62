"""The page of one run: what ran, what came out, and the plots, in one HTML file."""

from __future__ import annotations

from typing import Any

import torch

from shoal.core import Report

from .compare import compare_page
from .graph_plot import draw_graph
from .html import Box, Page, cell, flat, table
from .metrics import count_peers, last, low_title, metric_names, primary, title_of
from .plots import curves, disagreement, holdings, peer_histogram, per_class, sentence, small_curves
from .units import bytes_text, figure, seconds_text

__all__ = ["compare_page", "page"]

_SHOWN_ELSEWHERE = {"class_names", "class_counts", "per_class", "model", "source", "messages"}
_STATUS = {"stopped": "This run was stopped before its end.", "failed": "This run failed."}


def page(report: Report) -> str:
    """The run as one self-contained HTML page."""
    seed = report.config.get("seed")
    made = Page(report.system + (f", seed {seed}" if seed is not None else ""), sentence(report))
    made.cards(_cards(report))
    made.notes([*filter(None, [_STATUS.get(report.status)]), *report.notes])
    metric = primary(report)
    one = [(report.system, report)]
    if metric is not None:
        made.section(
            f"{title_of(metric)} over the run",
            made.plot("progress", curves(one, metric), f"{metric} against rounds, bytes and time"),
        )
    made.pairs(_boxes(report))
    _links(made, report)
    finals = [(k, v) for k, v in report.final.items() if k not in _SHOWN_ELSEWHERE]
    if finals:
        rows = [[cell(k, "key"), cell(v, "value")] for k, v in flat(dict(finals))]
        made.section("At the end", table([("Figure", ""), ("Value", "")], rows))
    rows = [[cell(k, "key"), cell(v, "value")] for k, v in flat(report.config)]
    made.fold("Configuration", table([("Field", ""), ("Value", "")], rows))
    return made.render()


def _cards(report: Report) -> list[tuple[str, str, str]]:
    metric = primary(report)
    found: list[tuple[str, str, str]] = []
    if metric is not None:
        name = title_of(metric)
        worst = last(report, f"{metric}_p10")
        small = "at the end" if worst is None else "mean of the peers, at the end"
        found.append((name, figure(last(report, metric)), small))
        if worst is not None:
            found.append((low_title(metric), figure(worst), "of the peers, at the end"))
        if (merged := last(report, f"merged_{metric}")) is not None:
            found.append(("Merged model", figure(merged), "the mean of the honest models"))
    done = int(report.rows[-1].get("tick", 0)) if report.rows else 0
    n = count_peers(report)
    each = f"{bytes_text(report.bytes_sent / n / done)} a peer and round" if n and done else ""
    found.append(("Bytes sent", bytes_text(report.bytes_sent), each))
    if (simulated := last(report, "time")) is not None:
        found.append(("Simulated time", seconds_text(simulated), f"{done} rounds"))
    found.append(("Wall time", seconds_text(report.wall_s), "on this machine"))
    return found


def _boxes(report: Report) -> list[Box]:
    """The smaller plots."""
    metric = primary(report)
    one = [(report.system, report)]
    found: list[Box] = []

    def add(name: str, title: str, drawn: Any, hint: str = "") -> None:
        if drawn is not None:
            found.append(Box(name, title, [("", drawn)], hint))

    graph = draw_graph(report)
    if graph is not None:
        coloured = f"Coloured by {title_of(metric).lower()}." if metric in report.peers and metric else ""
        add("graph", "Who talks to whom", graph[0], f"{coloured} {graph[1]}".strip())
    add("holdings", "Who holds what", holdings(report))
    add("spread", "Spread over the peers", peer_histogram(report))
    add(
        "classes", "Accuracy by class", per_class(report), "Whiskers: 10th to 90th percentile of the peers."
    )
    add("disagreement", "How far the peers disagree", disagreement(one))
    others = [m for m in metric_names(report) if m not in {metric, f"merged_{metric}", "consensus"}]
    for at, other in enumerate(others):
        add(f"metric-{at}", title_of(other), small_curves(one, other))
    return found


def _links(made: Page, report: Report) -> None:
    src, dst, sent = report.links
    if not len(src):
        return
    n = count_peers(report)
    total = int(sent.sum())
    order = torch.argsort(sent, descending=True, stable=True)[:10].tolist()

    def name(node: int) -> str:
        return "server" if node == n else f"peer {node}"

    rows = [
        [
            cell(name(int(src[i]))),
            cell(name(int(dst[i]))),
            cell(bytes_text(int(sent[i])), "n"),
            cell(f"{int(sent[i]) / total:.2%}" if total else "", "n"),
        ]
        for i in order
    ]
    hint = f"{len(src):,} directed links carried {bytes_text(total)}."
    if int(sent.min()) == int(sent.max()):
        made.section("Bytes by link", hint=f"{hint} Each carried {bytes_text(int(sent[0]))}.")
        return
    if len(src) > len(order):
        hint += f" The {len(order)} that carried most; links.parquet holds all."
    heads = [("From", ""), ("To", ""), ("Bytes", "n"), ("Share", "n")]
    made.section("Bytes by link", table(heads, rows), hint=hint)
