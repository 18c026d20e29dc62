"""Report: what came out, as data. The room ``report/`` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .tick import Graph

__all__ = ["Report"]


@dataclass
class Report:
    """The record of one run.

    Args:
        system: the method's slug.
        config: the whole run as plain data (what ``config.toml`` holds).
        rows: one dict per evaluation: ``tick``, ``time`` (simulated s), ``wall_s``, ``bytes`` (sent
            so far), ``spent`` (local work so far, all peers) and the metrics. A metric measured per
            peer gives ``name`` (mean), ``name_min``, ``name_p10``, ``name_std``.
        peers: the last evaluation's per-peer metrics: name -> [n].
        links: (src, dst, bytes) of every link used; n stands for the server.
        final: once at the end, plain data (per-class accuracy, refusals, epsilon, ...).
        graph: the first tick's graph.
        hostile: bool [n].
        output: what the peers ended with (models [n, D] for training methods).
        layers: the named slices of a model row, where the output is models.
        notes: lines that a reader must see (simulated responders, unmet assumptions).
        status: "done", "stopped" (Ctrl-C) or "failed".
    """

    system: str
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    peers: dict[str, Tensor] = field(default_factory=dict)
    links: tuple[Tensor, Tensor, Tensor] = field(
        default_factory=lambda: (torch.zeros(0), torch.zeros(0), torch.zeros(0))
    )
    final: dict[str, Any] = field(default_factory=dict)
    graph: Graph | None = None
    hostile: Tensor | None = None
    output: Any = None
    layers: list[tuple[str, slice, tuple[int, ...]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: str = "done"
    wall_s: float = 0.0
    out: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """The last row's metrics."""
        last = self.rows[-1] if self.rows else {}
        return {k: v for k, v in last.items() if k not in _BOOKKEEPING and v is not None}

    @property
    def bytes_sent(self) -> int:
        return int(self.rows[-1]["bytes"]) if self.rows else 0

    def curve(self, metric: str, against: str = "tick") -> tuple[list[float], list[float]]:
        """(x, y) of one metric over the run, against ``tick``, ``bytes``, ``time`` or ``wall_s``."""
        rows = [r for r in self.rows if r.get(metric) is not None]
        return [r[against] for r in rows], [r[metric] for r in rows]

    def summary(self) -> dict[str, Any]:
        """The last line of ``shoal run --json``."""
        return {
            "system": self.system,
            "seed": self.config.get("seed"),
            "peers": self.config.get("peers"),
            "rounds": self.config.get("rounds"),
            "metrics": self.metrics,
            "bytes_sent": self.bytes_sent,
            "wall_s": round(self.wall_s, 3),
            "out": self.out,
        }


_BOOKKEEPING = {"tick", "time", "wall_s", "bytes", "spent"}
