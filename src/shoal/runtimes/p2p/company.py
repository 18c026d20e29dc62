"""With whom a real peer does a tick: with those who are there, on a graph of so many peers."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.core import BadInput, Graph, Tick
from shoal.runtimes.base import Plan

from .desk import Desk
from .port import Loop
from .seats import Seats, Stage

__all__ = ["Company"]


class Company:
    """Who takes part in a tick, as one peer sees it when the tick begins.

    Args:
        loop: where the others live.
        plan: the run.
        here: this peer's seat.
        seats: of the run.
        desk: of this peer.
    """

    def __init__(self, loop: Loop, plan: Plan, here: int, seats: Seats, desk: Desk) -> None:
        self.loop, self.plan, self.here, self.seats, self.desk = loop, plan, here, seats, desk

    def present(self, tick: Tick) -> Tick:
        """The tick among the peers that are there: their graph is that of a run of so many peers."""
        seats = self.loop.call(self._there, tick.index)
        if len(seats) == self.plan.peers:
            return tick
        alive = torch.zeros(self.plan.peers, dtype=torch.bool)
        alive[list(seats)] = True
        return tick.replace(
            active=tick.active & alive,
            alive=alive if tick.alive is None else tick.alive & alive,
            graph=self._graph(seats, alive, tick),
        )

    def _there(self, index: int) -> tuple[int, ...]:
        found = {self.here}
        for seat, stage in self.seats.stages().items():
            # Who is done may have sent its last parcels already.
            if stage in {Stage.READY, Stage.BEGUN} or (
                stage == Stage.DONE and self.desk.holds(seat, index)
            ):
                found.add(seat)
        return tuple(sorted(found))

    def _graph(self, seats: tuple[int, ...], alive: Tensor, tick: Tick) -> Graph:
        plan, n = self.plan, self.plan.peers
        try:
            small = plan.network.graph_at(len(seats), plan.seed, tick.index)
        except BadInput:
            # No such graph of so many peers (a hypercube of 7): the one of all, without those away.
            return tick.graph.keep(alive[tick.graph.src] & alive[tick.graph.dst])
        place = torch.tensor(seats)
        own = torch.ones(n, dtype=torch.float64)
        own[place] = small.self_weight
        graph = Graph.of(n, place[small.src], place[small.dst], small.weight, own)
        active = tick.active
        return graph.keep(active[graph.src] & active[graph.dst])
