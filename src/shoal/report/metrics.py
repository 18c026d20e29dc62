"""Which of a report's columns are what: metrics, their spread over the peers, and bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.core import Report

__all__ = [
    "BOOKKEEPING", "count_peers", "honest", "last", "low_title", "lower_is_better", "metric_names",
    "named", "paths", "per_peer", "primary", "title_of",
]  # fmt: skip

BOOKKEEPING = ("tick", "time", "wall_s", "bytes", "spent")
_SPREAD = ("_min", "_p10", "_std")


def metric_names(report: Report) -> list[str]:
    """The numeric metrics, the primary one first; not their ``_min``, ``_p10`` and ``_std``."""
    columns = dict.fromkeys(k for row in report.rows for k, v in row.items() if _is_number(v))
    names = [c for c in columns if c not in BOOKKEEPING]
    return [n for n in names if not any(n.endswith(s) and n.removesuffix(s) in columns for s in _SPREAD)]


def primary(report: Report) -> str | None:
    """The metric that a reader looks at first: the first that the task measures."""
    names = [n for n in metric_names(report) if n != "consensus"]
    return names[0] if names else None


def last(report: Report, name: str) -> float | None:
    """A column's last value that is a number, or None."""
    for row in reversed(report.rows):
        value = row.get(name)
        if _is_number(value) and not math.isnan(value):
            return float(value)
    return None


def count_peers(report: Report) -> int:
    """n, from whatever in the report knows it; 0 where nothing does."""
    if report.graph is not None:
        return report.graph.n
    if report.hostile is not None:
        return len(report.hostile)
    if report.peers:
        return len(next(iter(report.peers.values())))
    value = report.config.get("peers")
    return value if isinstance(value, int) else 0


def honest(report: Report, n: int) -> Tensor:
    """bool [n]: who is not hostile."""
    if report.hostile is None or len(report.hostile) != n:
        return torch.ones(n, dtype=torch.bool)
    return ~report.hostile


def per_peer(report: Report, name: str | None) -> Tensor | None:
    """A metric of each peer, float64 [n], where it was measured per peer."""
    if name is None or name not in report.peers:
        return None
    return report.peers[name].to(torch.float64)


def lower_is_better(name: str | None) -> bool:
    """Whether a metric of this name counts what should be small (loss, regret, error, ...)."""
    words = {
        "loss",
        "regret",
        "error",
        "mse",
        "mae",
        "rmse",
        "nll",
        "gap",
        "perplexity",
        "distance",
        "cost",
    }
    return name is not None and bool(words & set(name.lower().split("_")))


def low_title(name: str | None) -> str:
    """What the 10th percentile over the peers is: their worst decile, or only that where low is good."""
    return "10th percentile" if lower_is_better(name) else "Worst decile"


def paths(report: Report) -> str:
    """How messages went: ``"peers"`` (from peer to peer, where any did), ``"server"`` (all through
    one), or ``""`` (there were none)."""
    src, dst, _ = report.links
    if not len(src):
        return ""
    n = count_peers(report)
    return "peers" if bool(((src != n) & (dst != n)).any()) else "server"


def title_of(name: str) -> str:
    """A column's name as an axis says it: ``merged_accuracy`` -> ``Merged accuracy``."""
    if name == "consensus":
        return "Disagreement (RMS distance of the models to their mean)"
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def named(part: Any) -> str:
    """A part's configuration as its name."""
    if isinstance(part, Mapping):
        return str(part.get("name", ""))
    if isinstance(part, list | tuple):
        return " + ".join(filter(None, (named(p) for p in part)))
    return "" if part is None else str(part)
