"""046 MeritRank, run by the peers: everyone gossips feedback and ranks the others for itself.

Source: Nasrulin, Ishmaev, Pouwelse, "MeritRank: Sybil tolerant reputation for merit-based
tokenomics" (BRAINS 2022, arXiv 2207.09950); the score is :mod:`shoal.trust.meritrank`.

A peer writes the feedback that it gives into its own log and pulls, each tick, what a random
neighbour holds beyond its version vector. Every ``epoch_ticks`` ticks it walks on what it knows.

Deviation: each epoch walks afresh. Pulls change the edges of many members at once, so that few walks
would keep a long prefix; :meth:`shoal.trust.walks.DecayWalks.again` does the paper's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Method, Tick, methods
from shoal.network.logs import Keys, SeededKeys, VersionedLog, mutual
from shoal.tasks.reputation import Dealings
from shoal.trust.meritrank import MeritRank
from shoal.trust.walks import WalkGraph

__all__ = ["GossipedMeritRank", "Views"]

_BLOCK = 1 << 15


@dataclass(frozen=True)
class Views:
    """What the peers know and think.

    Args:
        log: feedback by origin, entries [about whom, weight]; weights on one pair add up.
        reputation: float64 [P, n], the peers' views.
    """

    log: VersionedLog
    reputation: Tensor


@methods.register("meritrank")
@dataclass(frozen=True)
class GossipedMeritRank(MeritRank, Method):
    """MeritRank with epochs, over pulled feedback; its fields are those of the score and these:

    Args:
        walks: from each peer, each epoch.
        epoch_ticks: ticks between two rankings.
        signed: origins sign their feedback, so that neighbours cannot make it up.
    """

    walks: Annotated[int, Meta(ge=1)] = 1000
    epoch_ticks: Annotated[int, Meta(ge=1)] = 5
    signed: bool = False

    work: ClassVar[type[Dealings]] = Dealings
    recipe: ClassVar[dict[str, Any]] = {
        "task": {"name": "reputation", "graph": "thiers"},
        "network": {"graph": "regular(degree=6)"},
        "peers": 180,
        "rounds": 30,
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": {"name": "reputation", "graph": "karate", "periods": 2},
        "peers": 6,
        "rounds": 6,
        "method": {"walks": 50, "epoch_ticks": 2},
    }

    def init(self, ctx: Context[Dealings]) -> Views:
        rows = len(ctx.peers)
        return Views(VersionedLog.empty(rows, ctx.n), torch.zeros(rows, ctx.n, dtype=torch.float64))

    def step(self, s: Views, tick: Tick, ctx: Context[Dealings]) -> Views:
        keys: Keys | None = SeededKeys(ctx.seed) if self.signed else None
        log = s.log
        for row, (peer, news) in enumerate(
            zip(ctx.peers.tolist(), ctx.task.told(tick.index, tick.total), strict=True)
        ):
            log = log.append(row, peer, news, keys)

        active = ctx.mine(tick.active)
        neighbour, degree = (ctx.mine(v) for v in mutual(tick.graph))
        chosen = ctx.draws("ask", tick.index).integers(degree, 1)
        asks = active & (degree > 0)
        ask = neighbour.gather(1, chosen)[:, 0] if neighbour.shape[1] else degree
        log, _ = log.pull(ctx.net, tick, torch.where(asks, ask, -1).tolist(), keys, _checker(ctx.n))

        reputation = s.reputation
        if (tick.index + 1) % self.epoch_ticks == 0:
            now = self._views(log, tick, ctx)
            reputation = torch.where(active[:, None], self.epoch(reputation, now), reputation)
        return Views(log, reputation)

    def output(self, s: Views) -> Tensor:
        return s.reputation

    def measure(self, s: Views, tick: Tick, ctx: Context[Dealings]) -> dict[str, float | Tensor]:
        """``known``: the entries that each peer holds."""
        held = [float(sum(s.log.versions(row))) for row in range(len(ctx.peers))]
        return {"known": torch.tensor(held, dtype=torch.float64)}

    def _views(self, log: VersionedLog, tick: Tick, ctx: Context[Dealings]) -> Tensor:
        """The peers' fresh scores [P, n]; each walks on its own copy of the graph, side by side."""
        n, each = ctx.n, max(1, _BLOCK // self.walks)
        draws = ctx.draws("walks", tick.index)
        blocks = []
        for first in range(0, len(ctx.peers), each):
            rows = range(first, min(first + each, len(ctx.peers)))
            told = [(o, log.values(r, o, self.signed)) for r in rows for o in range(n)]
            count = np.array([len(values) for _, values in told])
            pairs = np.array(list(chain.from_iterable(v for _, v in told)), dtype=np.float64).reshape(-1, 2)
            # Row k of the chunk walks on nodes k n to k n + n - 1.
            shift = torch.from_numpy(np.repeat(np.arange(len(rows)).repeat(n) * n, count))
            source = shift + torch.from_numpy(np.repeat([o for o, _ in told], count))
            target = shift + torch.from_numpy(pairs[:, 0]).to(torch.int64)
            graph = WalkGraph.of(len(rows) * n, source, target, torch.from_numpy(pairs[:, 1]))
            base = torch.arange(len(rows)) * n
            peers = ctx.peers[first : first + len(rows)]
            walks = self.run(graph, base + peers, type(draws)(draws.seed, draws.purpose, peers, draws.tick))
            blocks.append(self.merit(walks.fold(n)))
        return torch.cat(blocks)


def _checker(n: int) -> Any:
    def check(origin: int, entry: Any) -> None:
        match entry:
            case [int(about), int() | float() as weight] if 0 <= about < n and about != origin:
                if 0 <= weight < float("inf"):
                    return
        raise BadInput("feedback", entry, f"[another peer below {n}, a finite weight of at least 0]")

    return check
