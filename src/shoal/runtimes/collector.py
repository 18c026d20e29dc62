"""The run-wide figures of a run in blocks: only another peer, which is told what each block has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.core import Report, Tick

from .base import Plan
from .parts import whole
from .session import Session

__all__ = ["Collector"]


class Collector:
    """Joins the blocks' saved parts, measures as one block of all peers would, and reports.

    Args:
        plan: the run.
        sizes: peers of each block.
    """

    def __init__(self, plan: Plan, sizes: Sequence[int]) -> None:
        self.session, self.sizes = Session.open(plan), list(sizes)
        self.ticks = plan.network.ticks(plan.peers, plan.seed, plan.rounds, 0, None)
        self.tick: Tick | None = None

    def join(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The checkpoint of all peers, in the form of one block of all of them."""
        values = whole(parts, self.sizes, type(self.session.work))
        values["run.rows"] = self.session.report.rows
        values["run.wall"] = self.session.wall
        return values

    def measure(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the report from a joined checkpoint."""
        session = self.session
        kept = session.started, session.before, session.energy
        session.restore(values)
        session.started, session.before, session.energy = kept
        while self.tick is None or self.tick.index < session.done - 1:
            self.tick, _ = next(self.ticks)
        tick = session.present(self.tick)
        return session.row(tick.index, session.now, tick)

    def close(self) -> Report:
        """The report of what has been measured."""
        return self.session.close()
