"""009 G-Rank: each peer ranks from gossiped click logs, trusting those who click as it does.

Source: Gold, Pouwelse, "G-Rank: Unsupervised continuous learn-to-rank for edge devices in a P2P
network" (arXiv 2301.12530) and the authors' notebook.

A peer that acts searches a term, clicks the first answer and pulls what one random neighbour holds
beyond its version vector. The answer for a term scores items by

    s(k) = sum_j C_j(term, k) (S_ij + F),      S_ii = 1,

with C_j(term, k) the clicks of origin j and S_ij the similarity of behaviour: of kt common terms
among the ten most used of each, km common clicks (pairs of term and item) and ku items that either
clicked, (km + kt^2) / ku, 0 where km = 0, divided by the largest over the others. Ties go to the
item, or term, of the lowest number.

Deviations: the notebook's square (on kt) is the default; ``similarity="printed"`` has the paper's (on
km). Swaps exchange two different positions of the list of answers, so that the first place is tried
out more often while there are few. "A tenth to the next peer" at the start is read as a tenth of the
library (``passed`` of the task), before the first clicks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Method, Tick, methods
from shoal.network.logs import Keys, SeededKeys, VersionedLog, mutual
from shoal.tasks.retrieval.clicks import Searching

__all__ = ["GRank", "Opinion", "Ranked"]

Formula = Literal["notebook", "printed", "none"]
TOP_TERMS = 10


@dataclass(frozen=True)
class Opinion:
    """One peer's knowledge: every click that it holds, by origin.

    Args:
        origin: int64 [E], who clicked, ascending.
        code: int64 [E], term * M + item.
        me: its own number.
        n: origins.
        tags: bool [M, T].
    """

    origin: Tensor
    code: Tensor
    me: int
    n: int
    tags: Tensor

    def similarity(self, formula: Formula) -> Tensor:
        """S_i: float64 [n]."""
        if formula == "none":
            return torch.ones(self.n, dtype=torch.float64)
        items, terms = self.tags.shape
        own = self.code[self.origin == self.me].unique()
        clicked = _marks(self.n, items * terms, self.origin, self.code)
        common = clicked[:, own].sum(1)
        taken = _marks(self.n, items, self.origin, self.code % items)
        either = (taken | taken[self.me]).sum(1)
        used = torch.bincount(self.origin * terms + self.code // items, minlength=self.n * terms)
        used = used.reshape(self.n, terms)
        order = torch.argsort(used, dim=1, descending=True, stable=True)[:, :TOP_TERMS]
        top = torch.zeros(self.n, terms, dtype=torch.bool).scatter(1, order, used.gather(1, order) > 0)
        shared = (top & top[self.me]).sum(1)
        raw = common + shared**2 if formula == "notebook" else shared + common**2
        s = torch.where(common > 0, raw.to(torch.float64) / either.clamp(min=1), 0.0)
        s[self.me] = 0.0
        s = s / s.max().clamp(min=1e-300)
        s[self.me] = 1.0
        return s

    def scores(self, trust: Tensor) -> Tensor:
        """s for every term and item [T, M], from the weight ``trust`` [n] of every origin's clicks."""
        items, terms = self.tags.shape
        weights = trust[self.origin]
        return torch.bincount(self.code, weights, terms * items).reshape(terms, items)

    def answers(self, term: int, scores: Tensor, library: Tensor) -> Tensor:
        """Items for a term, best first: those clicked for it; where it is new, those of the own
        library that it describes, else any clicked ones that it describes, else the most clicked.

        Args:
            scores: float64 [T, M].
            library: bool [M].
        """
        items = len(self.tags)
        fits = torch.zeros(items, dtype=torch.bool)
        fits[self._clicked(term)] = True
        fits, value = (fits, scores[term]) if bool(fits.any()) else self._unseen(term, library)
        return torch.argsort(torch.where(fits, -value, torch.inf), stable=True)[: int(fits.sum())]

    def _clicked(self, term: int) -> Tensor:
        """The items clicked for a term."""
        items = len(self.tags)
        return self.code[torch.div(self.code, items, rounding_mode="floor") == term] % items

    def _unseen(self, term: int, library: Tensor) -> tuple[Tensor, Tensor]:
        """Answers for a term that nobody is known to have clicked for: (which items, their value)."""
        items = len(self.tags)
        most = torch.bincount(self.code % items, minlength=items).to(torch.float64)
        described = self.tags[:, term]
        if bool((own := library & described).any()):
            return own, torch.zeros_like(most)
        logged = (most > 0) & described
        return (logged if bool(logged.any()) else torch.ones_like(described)), most


@dataclass(frozen=True)
class Ranked:
    """What the peers hold.

    Args:
        log: clicks by origin, entries term * M + item.
        mine: int64 [P], the peers' numbers.
        trust: float64 [P, n], S_ij + F.
        top: int64 [P, T], the first answer for every term.
    """

    log: VersionedLog
    mine: Tensor
    trust: Tensor
    top: Tensor


@methods.register("g-rank")
@dataclass(frozen=True)
class GRank(Method):
    """Personal ranking from gossiped clicks. Made for clocks that wake one peer a tick.

    Args:
        similarity: how kt and km combine; ``none``: all peers count alike (popularity).
        floor: F, the weight that even a stranger's clicks have.
        swap: chance that two answers change places before the user sees them.
        gossip: ``pull`` from one neighbour, ``push`` to one (the baseline), or ``none``.
        signed: origins sign their clicks (costs about 0.2 ms an entry and receiver).
    """

    similarity: Formula = "notebook"
    floor: Annotated[float, Meta(ge=0)] = 0.0
    swap: Annotated[float, Meta(ge=0, le=1)] = 0.5
    gossip: Literal["pull", "push", "none"] = "pull"
    signed: bool = False

    work: ClassVar[type[Searching]] = Searching
    recipe: ClassVar[dict[str, Any]] = {
        "task": {"name": "clicks", "library": "movielens"},
        "network": {"graph": "complete", "clock": "one-peer"},
        "peers": 60,
        "rounds": 6000,
        "every": 500,
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": {"name": "clicks", "library": "generated", "items": 24, "own": 0.4},
        "peers": 6,
        "rounds": 6,
    }

    def init(self, ctx: Context[Searching]) -> Ranked:
        rows, task = len(ctx.peers), ctx.task
        log = VersionedLog.empty(rows, ctx.n)
        for row, (peer, clicks) in enumerate(zip(ctx.peers.tolist(), task.first(), strict=True)):
            log = log.append(row, peer, clicks, self._keys(ctx))
        empty = Ranked(
            log,
            ctx.peers.clone(),
            torch.zeros(rows, ctx.n, dtype=torch.float64),
            torch.zeros(rows, task.terms, dtype=torch.int64),
        )
        return self._learn(empty, range(rows), ctx)

    def step(self, s: Ranked, tick: Tick, ctx: Context[Searching]) -> Ranked:
        active = ctx.mine(tick.active)
        acting = active.nonzero()[:, 0].tolist()
        log = s.log
        coin = ctx.draws("choices", tick.index).uniform(4)
        if acting:
            log = self._search(s, acting, coin, tick, ctx)
        learnt: list[int] = []
        if self.gossip != "none":
            neighbour, degree = (ctx.mine(v) for v in mutual(tick.graph))
            other = [-1] * len(ctx.peers)
            if acting and neighbour.shape[1]:
                chosen = (coin[:, 3] * degree).to(torch.int64)
                partner = neighbour.gather(1, chosen[:, None])[:, 0]
                other = torch.where(active & (degree > 0), partner, -1).tolist()
            exchange = log.pull if self.gossip == "pull" else log.push
            log, learnt = exchange(ctx.net, tick, other, self._keys(ctx), self._check(ctx))
        after = Ranked(log, s.mine, s.trust, s.top)
        return self._learn(after, sorted({*acting, *learnt}), ctx)

    def output(self, s: Ranked) -> dict[str, Any]:
        """The first answers [P, T] and each peer's own clicks."""
        own = [s.log.values(row, peer, self.signed) for row, peer in enumerate(s.mine.tolist())]
        return {"top": s.top, "clicks": own}

    def measure(self, s: Ranked, tick: Tick, ctx: Context[Searching]) -> dict[str, float | Tensor]:
        """``known``: the clicks that each peer holds."""
        held = [float(sum(s.log.versions(row))) for row in range(len(ctx.peers))]
        return {"known": torch.tensor(held, dtype=torch.float64)}

    def _search(
        self, s: Ranked, acting: list[int], coin: Tensor, tick: Tick, ctx: Context[Searching]
    ) -> VersionedLog:
        """Each acting peer's search and click, from what it knew; a Sybil's lies, once."""
        task, log, keys = ctx.task, s.log, self._keys(ctx)
        terms = task.searches(tick.index)
        for row in acting:
            peer, term = int(ctx.peers[row]), int(terms[row])
            if term < 0:
                lies = [] if log.held[row][peer] else task.lies(tick.index, tick.total)
                log = log.append(row, peer, lies, keys)
                continue
            known = self._opinion(log, row, ctx)
            found = known.answers(term, known.scores(s.trust[row]), task.library[row]).tolist()
            flip, one, two, _ = coin[row].tolist()
            if flip < self.swap and len(found) > 1:
                a = int(one * len(found))
                b = (a + 1 + int(two * (len(found) - 1))) % len(found)
                found[a], found[b] = found[b], found[a]
            log = log.append(row, peer, [task.code(term, found[0])], keys)
        spent = torch.zeros_like(task.spent)
        spent[acting] = 1.0
        task.spent = task.spent + spent
        return log

    def _learn(self, s: Ranked, rows: Any, ctx: Context[Searching]) -> Ranked:
        """Trust and first answers of the rows whose logs grew."""
        trust, top = s.trust.clone(), s.top.clone()
        for row in rows:
            known = self._opinion(s.log, row, ctx)
            trust[row] = known.similarity(self.similarity) + self.floor
            scores = known.scores(trust[row])
            top[row] = scores.argmax(1)
            # Terms without a score, or without a click, have answers all the same.
            for term in (scores.amax(1) <= 0).nonzero()[:, 0].tolist():
                top[row, term] = known.answers(term, scores, ctx.task.library[row])[0]
        return Ranked(s.log, s.mine, trust, top)

    def _opinion(self, log: VersionedLog, row: int, ctx: Context[Searching]) -> Opinion:
        copies = [log.values(row, o, self.signed) for o in range(ctx.n)]
        count = np.array([len(c) for c in copies])
        code = np.fromiter(chain.from_iterable(copies), np.int64, int(count.sum()))
        origin = np.repeat(np.arange(ctx.n), count)
        return Opinion(
            torch.from_numpy(origin), torch.from_numpy(code), int(ctx.peers[row]), ctx.n, ctx.task.tags
        )

    def _keys(self, ctx: Context[Searching]) -> Keys | None:
        return SeededKeys(ctx.seed) if self.signed else None

    @staticmethod
    def _check(ctx: Context[Searching]) -> Any:
        most = ctx.task.terms * ctx.task.items

        def check(origin: int, entry: Any) -> None:
            if type(entry) is not int or not 0 <= entry < most:
                raise BadInput("click", entry, f"an item known for a term: a number from 0 to {most - 1}")

        return check


def _marks(rows: int, columns: int, row: Tensor, column: Tensor) -> Tensor:
    """Where a (row, column) occurs: bool [rows, columns]."""
    marks = torch.zeros(rows * columns, dtype=torch.bool)
    marks[row * columns + column] = True
    return marks.reshape(rows, columns)
