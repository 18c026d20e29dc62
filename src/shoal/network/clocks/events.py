"""What the Poisson clocks share: one sequence of events, handed out alone or in groups.

The events 0, 1, 2, ... of a run are one sequence that depends on (configuration, seed) alone: event e
draws its waiting time and its peers with e as the counter. A tick is either the next event, or the
longest run of next events that touch different peers; nobody can tell which of the two it was.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from shoal.core import Clock, Draws, Graph, Tick

__all__ = ["Events", "State", "disjoint_prefix"]

BLOCK = 2048
State = dict[str, Tensor]


@lru_cache(maxsize=64)
def _block(seed: int, purpose: str, number: int) -> tuple[Tensor, Tensor]:
    """(exponentials of mean 1 [BLOCK], words in [0, 2^32) [BLOCK, 2]) of the events of one block."""
    events = torch.arange(number * BLOCK, (number + 1) * BLOCK)
    draws = Draws(seed, f"clock/{purpose}", events)
    return draws.at("wait").exponential(1)[:, 0], draws.words(2)


def _draw(seed: int, purpose: str, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The same for the events first .. first + count - 1."""
    start = first // BLOCK
    blocks = [_block(seed, purpose, b) for b in range(start, (first + count - 1) // BLOCK + 1)]
    rows = slice(first - start * BLOCK, first - start * BLOCK + count)
    return torch.cat([w for w, _ in blocks])[rows], torch.cat([u for _, u in blocks])[rows]


def disjoint_prefix(a: Tensor, b: Tensor) -> int:
    """How many of the first events {a, b} touch different peers. A lone peer has b = a."""
    peer, order = torch.stack([a, b], 1).flatten().sort(stable=True)
    event = order // 2
    again = (peer[1:] == peer[:-1]) & (event[1:] != event[:-1])
    return int(event[1:][again].min()) if bool(again.any()) else len(a)


@dataclass(frozen=True)
class Events(Clock):
    """Abstract: the tick is made of the next events of one Poisson process.

    Args:
        group: hand out the longest run of events that touch different peers as one tick, instead of
            one event a tick. The result is the same.
    """

    events: ClassVar[bool] = True
    group: bool = True

    @abstractmethod
    def _rate(self, state: State, n: int) -> float:
        """Events per unit of time."""

    @abstractmethod
    def _peers(self, state: State, tick: Tick, words: Tensor) -> tuple[Tensor, Tensor]:
        """The peers (a, b) of each event from its words [K, 2]; b = a where one peer is alone."""

    @abstractmethod
    def _acting(self, a: Tensor, b: Tensor, up: Tensor) -> Tensor:
        """The peers that compute in these events; ``up``: where a talks to b."""

    def _begin(self, n: int) -> State:
        return {
            "event": torch.zeros(1, dtype=torch.int64),
            "now": torch.zeros(1, dtype=torch.float64),
            "time": torch.zeros(n, dtype=torch.float64),
        }

    def next(self, state: State, tick: Tick, seed: int) -> tuple[Tick, State]:
        n, first = len(tick.active), int(state["event"])
        # No more than n events touch different peers; about sqrt(n) do.
        look = 2 * math.isqrt(n) + 4 if self.group else 1
        while True:
            wait, words = _draw(seed, self.slug, first, look)
            a, b = self._peers(state, tick, words)
            count = disjoint_prefix(a, b)
            if count < look or not self.group:
                break
            look *= 2
        a, b = a[:count], b[:count]
        now = torch.cumsum(torch.cat([state["now"], wait[:count] / self._rate(state, n)]), 0)
        time = state["time"].clone()
        time[a] = time[b] = now[1:]

        active = torch.zeros(n, dtype=torch.bool)
        up = self._up(tick.graph, a, b)
        active[self._acting(a, b, up)] = True
        src, dst = torch.cat([a[up], b[up]]), torch.cat([b[up], a[up]])
        half = torch.full((len(src),), 0.5, dtype=torch.float64)
        own = torch.ones(n, dtype=torch.float64)
        own[src] = 0.5
        tick = tick.replace(active=active & tick.active, graph=Graph.of(n, src, dst, half, own), time=time)
        return tick, state | {"event": state["event"] + count, "now": now[-1:], "time": time}

    @staticmethod
    def _up(graph: Graph, a: Tensor, b: Tensor) -> Tensor:
        """Bool [K]: the pairs whose edge is up in this tick's graph, in either direction."""
        key = graph.dst * graph.n + graph.src  # ascending: a graph's edges are sorted so
        pair = torch.stack([a * graph.n + b, b * graph.n + a])
        place = torch.searchsorted(key, pair).clamp(max=max(len(key) - 1, 0))
        return (key[place] == pair).any(0) if len(key) else torch.zeros_like(a, dtype=torch.bool)
