"""A disaster: at one tick the central peers of the graph, or others, disappear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import networkx
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Clock, Draws, Graph, Tick, clocks

__all__ = ["Disruption", "victims"]

Who = Literal["degree", "betweenness", "random", "leaves", "none"]


def victims(graph: Graph, fraction: float, who: Who, seed: int) -> Tensor:
    """The round(fraction n) peers that a disruption takes: bool [n]. Ties go to the lower number.

    Args:
        who: ``degree`` or ``betweenness``: the most central; ``leaves``: the least degrees;
            ``random``: drawn from the seed; ``none``.
    """
    n = graph.n
    score = graph.in_degree().to(torch.float64)
    if who == "leaves":
        score = -score
    elif who == "random":
        score = Draws(seed, "clock/disruption", torch.arange(n)).uniform(1)[:, 0]
    elif who == "betweenness":
        directed = networkx.DiGraph()
        directed.add_nodes_from(range(n))
        directed.add_edges_from(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
        central = networkx.betweenness_centrality(directed)
        # Rounded, so that sums in another order cannot break a tie.
        score = torch.tensor([round(central[i], 10) for i in range(n)], dtype=torch.float64)
    gone = torch.zeros(n, dtype=torch.bool)
    if who != "none":
        gone[score.argsort(descending=True, stable=True)[: round(fraction * n)]] = True
    return gone


@clocks.register("disruption")
@dataclass(frozen=True)
class Disruption(Clock):
    """At one tick a set of peers disappears for good, by its place in the graph of tick 0.

    Deterministic for a seed. A lost peer's messages stop; nobody rewires.

    Args:
        at: the tick.
        fraction: share of the peers that goes (rounded).
        who: see :func:`victims`.

    Source: arXiv 2310.02986.
    """

    at: Annotated[int, Meta(ge=0)] = 10
    fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    who: Who = "degree"

    def start(self, n: int, seed: int, total: int, graph: Graph) -> dict[str, Tensor]:
        if self.who != "none" and self.at >= total:
            raise BadInput("clock.at", self.at, f"a tick of the run, 0 to {total - 1}")
        gone = victims(graph, self.fraction, self.who, seed)
        if bool(gone.all()):
            raise BadInput("clock.fraction", self.fraction, f"a share that leaves one of the {n} peers")
        return {"gone": gone}

    def next(self, state: Any, tick: Tick, seed: int) -> tuple[Tick, Any]:
        if tick.index < self.at:
            return tick, state
        left = ~state["gone"]
        alive = left if tick.alive is None else tick.alive & left
        graph = self.among(tick.graph, left)
        return tick.replace(active=tick.active & left, alive=alive, graph=graph), state
