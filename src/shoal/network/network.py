"""The configuration of a network: graph, weights, clocks, links, wire, rule and adversary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import (
    Attack,
    BadInput,
    Clock,
    Draws,
    Graph,
    Link,
    Method,
    Part,
    Rule,
    Tick,
    Topology,
    attacks,
    clocks,
    codecs,
    rules,
    topologies,
)
from shoal.wire.chain import Chain
from shoal.wire.privacy.accountant import epsilon
from shoal.wire.privacy.gaussian import Gaussian

from .links import Links
from .weights import Weighting, check_weights, make_graph, weightings

__all__ = ["Network"]


def _links(value: Any) -> Links:
    return value if isinstance(value, Links) else Links(**value)


def _attack(value: Any) -> Attack | None:
    return None if value is None or value in ("", "none") else attacks(value)


@dataclass(frozen=True)
class Network(Part):
    """Who talks to whom, and what happens on the way.

    Args:
        graph: the topology.
        weights: mixing weights on it.
        clock: what happens when; several clocks chain.
        links: latency, bandwidth, faults.
        codec: the wire pipeline, in order; empty: raw floats.
        rule: how receivers combine messages.
        attack: what hostile peers do.
        hostile: share of the peers (drawn from the seed), or their numbers.
        gamma: step towards the neighbours' average; default 1, and 0.5 where the codec drops most of
            a message (CHOCO needs a step below 1 there).
        norm: L2 norm above which a message is not believed; None: none is too long.
        error_feedback: keep what a lossy codec drops from pooled updates for the next one.
    """

    graph: Topology = topologies.field("ring")
    weights: Weighting = weightings.field("metropolis")
    clock: tuple[Clock, ...] = clocks.fields(("rounds",))
    links: Links = field(default_factory=Links, metadata={"registry": _links})
    codec: tuple[Link, ...] = codecs.fields(())
    rule: Rule = rules.field("mean")
    attack: Attack | None = field(default=None, metadata={"registry": _attack})
    hostile: float | tuple[int, ...] = 0.0
    gamma: Annotated[float, Meta(gt=0, le=1)] | None = None
    norm: Annotated[float, Meta(gt=0)] | None = None
    error_feedback: bool = True

    def check(self) -> None:
        Chain(self.codec)
        if isinstance(self.hostile, int | float) and not 0 <= self.hostile < 1:
            raise BadInput("hostile", self.hostile, "a share in [0, 1), or a list of peers")
        some = self.hostile if isinstance(self.hostile, tuple) else self.hostile > 0
        if some and self.attack is None:
            raise BadInput("attack", None, "name an attack for the hostile peers")

    @property
    def step_size(self) -> float:
        if self.gamma is not None:
            return self.gamma
        return 0.5 if Chain(self.codec).incremental else 1.0

    def bounded(self, values: Tensor, sound: Tensor) -> Tensor:
        """Which of the ``sound`` messages [M, D] are not too long: bool [M]."""
        return sound if self.norm is None else sound & (values.norm(dim=1) <= self.norm)

    def speed(self, n: int, seed: int) -> Tensor:
        """Relative computing speed of each peer: float64 [n]."""
        return math.prod((c.speed(n, seed) for c in self.clock), start=torch.ones(n, dtype=torch.float64))

    def hostiles(self, n: int, seed: int) -> Tensor:
        """Who is hostile: bool [n]."""
        mask = torch.zeros(n, dtype=torch.bool)
        if isinstance(self.hostile, tuple):
            if any(not 0 <= i < n for i in self.hostile):
                raise BadInput("network.hostile", self.hostile, f"peers are numbered 0 to {n - 1}")
            mask[list(self.hostile)] = True
            return mask
        count = round(self.hostile * n)
        order = Draws(seed, "shared/hostile", torch.zeros(1, dtype=torch.int64)).permutation(n)[0]
        mask[order[:count]] = True
        return mask

    def graph_at(self, n: int, seed: int, tick: int) -> Graph:
        """The topology's weighted graph at a tick."""
        return make_graph(self.graph, self.weights, n, seed, tick)

    def open(self, n: int, seed: int, total: int = 1, method: type[Method] | None = None) -> Graph:
        """The first tick's graph, after the checks that can be made before a run of ``total`` ticks.

        Args:
            method: what it demands of the graph and its weights is checked too.

        Raises:
            BadInput: no such graph, weights that the method cannot use, a rule that can never work.
        """
        try:
            graph = self.graph_at(n, seed, 0)
            if n > 1 and self.graph.static:
                check_weights(
                    graph,
                    symmetric=method is not None and method.symmetric,
                    connected=method is not None and method.connected,
                    columns=method is not None and method.columns,
                )
            for clock in self.clock:
                clock.start(n, seed, total, graph)
        except BadInput as error:
            raise error.under("network") from None
        if self.rule.least() > max(n, 1):
            allowed = f"needs at least {self.rule.least()} messages; there are {n} peers"
            raise BadInput("network.rule", self.rule.slug, allowed)
        return graph

    def ticks(self, n: int, seed: int, total: int, first: int, state: Any) -> Iterator[tuple[Tick, Any]]:
        """The ticks from ``first`` on, each with the clocks' state after it."""
        base = self.graph_at(n, seed, first)
        if state is None:
            state = tuple(c.start(n, seed, total, base) for c in self.clock)
        for index in range(first, total):
            if not self.graph.static and index != first:
                base = self.graph_at(n, seed, index)
            graph = base.keep(self.links.up(base.src, base.dst, n, index))
            tick = Tick(
                index=index,
                total=total,
                time=torch.full((n,), float(index), dtype=torch.float64),
                active=torch.ones(n, dtype=torch.bool),
                graph=graph,
            )
            after = []
            for clock, held in zip(self.clock, state, strict=True):
                tick, held = clock.next(held, tick, seed)
                after.append(held)
            state = tuple(after)
            yield tick, state

    def spent_privacy(self, releases: Tensor) -> dict[str, Any]:
        """The privacy spent by the peer that released most, where the wire adds noise."""
        for link in self.codec:
            if isinstance(link, Gaussian) and int(releases.max()):
                count = int(releases.max())
                return {"epsilon": epsilon(link.sigma, count, link.delta), "delta": link.delta}
        return {}

    @property
    def events(self) -> bool:
        """Whether an event clock sets the time."""
        return any(c.events for c in self.clock)
