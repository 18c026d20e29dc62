"""All peers in this process, stacked: one block that holds everyone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta

from shoal.core import BadInput, Report, tree

from .base import Plan, Progress, Runtime, runtimes
from .session import Session

__all__ = ["Local"]


@runtimes.register("local")
@dataclass(frozen=True)
class Local(Runtime):
    """All n peers as one block of batched tensors.

    Args:
        checkpoint_every: ticks between checkpoints (0: none).
        threads: of torch; 0 leaves them as they are.
    """

    checkpoint_every: Annotated[int, Meta(ge=0)] = 10
    threads: Annotated[int, Meta(ge=0)] = 0

    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        if self.threads:
            torch.set_num_threads(self.threads)
        session = Session.open(plan)
        if resume:
            if checkpoint is None:
                raise BadInput("resume", True, "needs the folder of the run to resume")
            session.restore(tree.read(checkpoint))
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not session.report.rows:
                session.row(-1, 0.0)
            for tick in session.ticks():
                row = session.row(tick.index, session.now, tick) if session.due(tick) else None
                due = self.checkpoint_every and (session.done % self.checkpoint_every == 0 or tick.last)
                # A checkpoint is only worth its time where there is somewhere to keep it.
                if checkpoint is not None and due:
                    tree.save(session.saved(), checkpoint)
                if progress is not None:
                    progress(session.done, plan.rounds, row, session.net.meter.total)
        except KeyboardInterrupt:
            session.report.status = "stopped"
        return session.close()
