"""Peers that come and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Clock, Draws, Graph, Tick, clocks

__all__ = ["Churn"]

Rate = Annotated[float, Meta(ge=0, le=1)]
Event = Literal["join", "leave", "crash", "rejoin"]

OUTSIDE, PRESENT, CRASHED, LEFT = range(4)
MOVES: dict[Event, tuple[int, int]] = {
    "join": (OUTSIDE, PRESENT),
    "leave": (PRESENT, LEFT),
    "crash": (PRESENT, CRASHED),
    "rejoin": (CRASHED, PRESENT),
}


@clocks.register("churn")
@dataclass(frozen=True)
class Churn(Clock):
    """Peers join, leave for good, crash and come back; who is away neither computes nor speaks.

    In each tick every peer makes at most one move by chance, then the scheduled moves happen.

    Args:
        join, leave, crash, rejoin: chance per tick of a peer that is outside, present, present,
            crashed.
        initial: share of the peers present at the start (the lowest numbers, rounded); the rest is
            outside.
        schedule: (tick, what, who): who is a share of those who can make that move (rounded, drawn
            from the seed) or a list of peers.
    """

    join: Rate = 0.0
    leave: Rate = 0.0
    crash: Rate = 0.0
    rejoin: Rate = 0.0
    initial: Rate = 1.0
    schedule: tuple[tuple[int, Event, float | tuple[int, ...]], ...] = ()

    def check(self) -> None:
        if self.leave + self.crash > 1:
            raise BadInput("crash", self.crash, "leave + crash at most 1: a peer makes one move a tick")
        for when, what, who in self.schedule:
            if when < 0 or (isinstance(who, float) and not 0 <= who <= 1):
                raise BadInput("schedule", (when, what, who), "(tick >= 0, move, share in [0, 1] or peers)")

    def start(self, n: int, seed: int, total: int, graph: Graph) -> dict[str, Tensor]:
        for _, _, who in self.schedule:
            if not isinstance(who, float) and any(not 0 <= i < n for i in who):
                raise BadInput("clock.schedule", who, f"peers are numbered 0 to {n - 1}")
        return {"status": torch.where(torch.arange(n) < round(self.initial * n), PRESENT, OUTSIDE)}

    def next(self, state: dict[str, Tensor], tick: Tick, seed: int) -> tuple[Tick, dict[str, Tensor]]:
        before = state["status"]
        n = len(before)
        draws = Draws(seed, "clock/churn", torch.arange(n), tick.index)
        coin = draws.uniform(1)[:, 0]
        status = before.clone()
        status[(before == OUTSIDE) & (coin < self.join)] = PRESENT
        status[(before == CRASHED) & (coin < self.rejoin)] = PRESENT
        status[(before == PRESENT) & (coin < self.leave)] = LEFT
        status[(before == PRESENT) & (coin >= self.leave) & (coin < self.leave + self.crash)] = CRASHED
        for number, (when, what, who) in enumerate(self.schedule):
            if when != tick.index:
                continue
            source, target = MOVES[what]
            able = (status == source).nonzero()[:, 0]
            if isinstance(who, float):
                order = draws.at(f"{number}").uniform(1)[able, 0].argsort(stable=True)
                able = able[order[: round(who * len(able))]]
            else:
                able = able[torch.isin(able, torch.tensor(who, dtype=torch.int64))]
            status[able] = target
        there = status == PRESENT
        graph = self.among(tick.graph, there)
        alive = there if tick.alive is None else tick.alive & there
        told = tick.replace(active=tick.active & there, alive=alive, graph=graph)
        return told, {"status": status}
