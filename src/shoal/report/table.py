"""A run's figures as Parquet tables.

``metrics.parquet``: one row an evaluation. ``peers.parquet``: one row a peer, its last metrics
(what is not one number for each of the n peers is left out).
``links.parquet``: (src, dst, bytes). ``graph.parquet``: (src, dst, weight); src = dst: the weight
that a peer gives to itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from shoal.core import BadInput, Graph, Report

from .metrics import count_peers

__all__ = ["read_tables", "tables"]


def tables(report: Report) -> dict[str, pa.Table]:
    """The report's tables by file name."""
    n = count_peers(report)
    peers: dict[str, Any] = {}
    if n:
        peers["peer"] = list(range(n))
        if report.hostile is not None:
            peers["hostile"] = report.hostile.tolist()
    for name, values in report.peers.items():
        if values.shape == (n,):
            peers[name] = values.tolist()
    src, dst, sent = report.links
    found = {
        "metrics.parquet": _rows(report.rows),
        "peers.parquet": pa.table({k: pa.array(v) for k, v in peers.items()}),
        "links.parquet": pa.table(
            {
                "src": pa.array(src.tolist(), pa.int64()),
                "dst": pa.array(dst.tolist(), pa.int64()),
                "bytes": pa.array(sent.tolist(), pa.int64()),
            }
        ),
    }
    graph = report.graph
    if graph is not None:
        own = list(range(graph.n))
        found["graph.parquet"] = pa.table(
            {
                "src": pa.array(graph.src.tolist() + own, pa.int64()),
                "dst": pa.array(graph.dst.tolist() + own, pa.int64()),
                "weight": pa.array(graph.weight.tolist() + graph.self_weight.tolist(), pa.float64()),
            }
        )
    return found


def read_tables(folder: Path, report: Report) -> None:
    """Fill a report's rows, peers, links and graph from the folder's tables.

    Raises:
        BadInput: a table is missing or damaged.
    """
    report.rows = _read(folder / "metrics.parquet").to_pylist()
    columns = _columns(folder / "peers.parquet")
    columns.pop("peer", None)
    hostile = columns.pop("hostile", None)
    report.hostile = None if hostile is None else hostile.to(torch.bool)
    report.peers = columns
    links = _columns(folder / "links.parquet")
    if links.keys() != {"src", "dst", "bytes"}:
        raise BadInput("report", str(folder / "links.parquet"), "needs the columns src, dst, bytes")
    report.links = (links["src"], links["dst"], links["bytes"])
    path = folder / "graph.parquet"
    if path.exists():
        edges = _columns(path)
        if edges.keys() != {"src", "dst", "weight"}:
            raise BadInput("report", str(path), "needs the columns src, dst, weight")
        own = edges["src"] == edges["dst"]
        report.graph = Graph(
            int(own.sum()),
            edges["src"][~own],
            edges["dst"][~own],
            edges["weight"][~own],
            edges["weight"][own],
        )


def _rows(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows whose columns may differ: missing values are null; whole numbers stay whole."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(k for row in rows for k in row):
        values = [row.get(name) for row in rows]
        kinds = {type(v) for v in values if v is not None}
        if kinds <= {int}:
            kind = pa.int64()
        elif kinds <= {int, float}:
            kind = pa.float64()
            values = [None if v is None else float(v) for v in values]
        else:
            kind = pa.string()
            values = [None if v is None else str(v) for v in values]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise BadInput("report", str(path), f"not a readable table ({reason})") from None


def _columns(path: Path) -> dict[str, Tensor]:
    table = _read(path)
    try:
        return {name: torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names}
    except TypeError as error:
        raise BadInput("report", str(path), f"not numbers only ({error})") from None
