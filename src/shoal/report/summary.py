"""The row that a comparison, on a page or in the terminal, gives to each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core import Report

from .metrics import last, primary

__all__ = ["Line", "lines", "shared_metric"]


@dataclass(frozen=True)
class Line:
    """One run in a comparison.

    Args:
        name: of the run.
        mean, worst, merged: of the shared metric at the end: over the peers, their 10th percentile,
            and the mean model; None where not measured.
        sent: bytes.
        time: simulated seconds, or None.
        wall: seconds.
        status: of the run.
    """

    name: str
    mean: float | None
    worst: float | None
    merged: float | None
    sent: int
    time: float | None
    wall: float
    status: str


def shared_metric(reports: Sequence[tuple[str, Report]]) -> str | None:
    """The metric to compare by: the primary one of most runs, the first of them on a tie."""
    found = [m for m in (primary(r) for _, r in reports) if m is not None]
    return max(dict.fromkeys(found), key=found.count, default=None)


def lines(reports: Sequence[tuple[str, Report]], metric: str | None) -> list[Line]:
    """One line a run, in the order given."""
    return [
        Line(
            name=name,
            mean=last(r, metric) if metric else None,
            worst=last(r, f"{metric}_p10") if metric else None,
            merged=last(r, f"merged_{metric}") if metric else None,
            sent=r.bytes_sent,
            time=last(r, "time"),
            wall=r.wall_s,
            status=r.status,
        )
        for name, r in reports
    ]
