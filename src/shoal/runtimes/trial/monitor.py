"""112 Monitor: what an observer that pulls signed records can say about a mechanism in use.

After every crawl it judges the new version's half-blocks: invariants, how often they are broken, who is
harmed, and whether the abort rule has struck. A verdict is a function of the records alone, so that the
crawl, kept as it came in, gives every verdict again (:func:`replay`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal.core import BadInput
from shoal.network.logs import VersionedLog
from shoal.trust.bandwidth_tokens import read_half
from shoal.trust.token_audit import Entry, Logs, Violation, audit

from .trial import Trial
from .words import IdKeys

__all__ = ["Crawl", "Verdict", "behaviour", "drift", "findings", "judge", "replay"]


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Args:
        crawl: which one, from 0.
        proposals: half-blocks of takers, and ``answers`` those of givers.
        violations: by invariant.
        harmed: the peers whose books they concern.
        stop: whether the abort rule has struck.
    """

    crawl: int
    proposals: int
    answers: int
    violations: dict[str, int]
    harmed: list[int]
    stop: bool

    @property
    def total(self) -> int:
        return sum(self.violations.values())


def judge(crawl: int, logs: Logs, trial: Trial) -> tuple[Verdict, list[Violation]]:
    """The verdict on what has been pulled so far, and the violations themselves."""
    own = {o: [e for e in entries if e[2].version == trial.new] for o, entries in logs.items()}
    found = audit(own, trial.invariants)
    sides = Counter(e[2].side for entries in own.values() for e in entries)
    count = Counter(dict.fromkeys(trial.invariants, 0))
    count.update(v.invariant for v in found)
    many = len(found) >= trial.stop.least
    verdict = Verdict(
        crawl,
        sides["take"],
        sides["give"],
        dict(count),
        sorted({p for v in found for p in v.parties}),
        many and len(found) / max(1, sides["take"]) > trial.stop.rate,
    )
    return verdict, found


def behaviour(logs: Logs) -> dict[str, float]:
    """How peers use the mechanism, in figures that do not depend on how long it ran.

    ``answers``: per proposal; ``chunks``: bytes of a proposal, in units of the smallest; ``gini``: of
    the bytes that the peers took.
    """
    takes = [e for entries in logs.values() for e in entries if e[2].side == "take"]
    gives = sum(e[2].side == "give" for entries in logs.values() for e in entries)
    if not takes:
        return {"answers": 0.0, "chunks": 0.0, "gini": 0.0}
    sizes = [half.amount for _, _, half in takes]
    taken = Counter(dict.fromkeys(logs, 0))
    for origin, _, half in takes:
        taken[origin] += half.amount
    ordered = sorted(taken.values())
    n, total = len(ordered), sum(ordered)
    gini = sum((2 * i - n + 1) * v for i, v in enumerate(ordered)) / (n * total)
    return {
        "answers": gives / len(takes),
        "chunks": sum(sizes) / len(sizes) / min(sizes),
        "gini": gini,
    }


def drift(now: dict[str, float], simulated: dict[str, float]) -> dict[str, float]:
    """How far each figure is from the simulated one, relative to it (absolute where that is below 0.1)."""
    return {k: (v - simulated[k]) / max(0.1, abs(simulated[k])) for k, v in now.items()}


class Crawl:
    """What a crawler has pulled, as it came in.

    Args:
        trial: what is tried.
        ids: the origins.
        path: where it is kept as lines of JSON, or None.
    """

    def __init__(self, trial: Trial, ids: Sequence[str], path: Path | None = None) -> None:
        self.trial, self.keys = trial, IdKeys(ids)
        self.log = VersionedLog.empty(1, len(ids))
        self.refused: Counter[int] = Counter()
        self.verdicts: list[Verdict] = []
        self.violations: list[Violation] = []
        self._halves: dict[int, list[Entry]] = {i: [] for i in range(len(ids))}
        self._path = path
        self._keep({"trial": trial.spec(), "ids": list(ids)})

    def take(self, source: int, news: Any) -> None:
        """Records from one peer, checked: signed by their origin, half-blocks, without a gap.

        Raises:
            BadInput: they are not; nothing of them is taken.
        """
        try:
            self.log = self.log.merge(0, news, self.keys, _check)
        except BadInput:
            self.refused[source] += 1
            raise
        self._keep({"from": source, "news": msgspec.to_builtins(news)})

    def judge(self) -> Verdict:
        """The verdict on all that has been pulled."""
        verdict, self.violations = judge(len(self.verdicts), self.logs(), self.trial)
        self.verdicts.append(verdict)
        self._keep({"verdict": verdict.__dict__})
        return verdict

    def logs(self) -> Logs:
        """The half-blocks by origin."""
        for origin, entries in self._halves.items():
            for value in self.log.values(0, origin, signed=True)[len(entries) :]:
                entries.append((origin, len(entries), read_half(value)))
        return self._halves

    def _keep(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def replay(path: Path) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts that a kept crawl holds, and those that its records give, checked and judged anew.

    Raises:
        BadInput: damaged, or records that are not signed by their origin.
    """
    crawl: Crawl | None = None
    kept: list[Verdict] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match crawl, _line(path, number, text):
            case None, {"trial": trial, "ids": ids}:
                crawl = Crawl(Trial.of(trial), ids)
            case Crawl(), {"from": source, "news": news}:
                crawl.take(source, [tuple(item) for item in news])
            case Crawl(), {"verdict": verdict}:
                kept.append(Verdict(**verdict))
                crawl.judge()
            case _:
                raise BadInput("crawl", str(path), f"line {number} does not belong there")
    return kept, [] if crawl is None else crawl.verdicts


def _check(origin: int, value: Any) -> None:
    read_half(value)


def _line(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput("crawl", str(path), f"line {number}: {error}") from None


def findings(crawl: Crawl, stage: str, moved: dict[str, float]) -> dict[str, Any]:
    """What the designers of the next version need: for each broken invariant its smallest trace, as
    signed records, and how often; drift against the simulation."""
    broken: dict[str, Any] = {}
    for violation in sorted(crawl.violations, key=lambda v: len(v.trace)):
        held = broken.setdefault(violation.invariant, {"count": 0, "trace": None})
        held["count"] += 1
        held["trace"] = held["trace"] or [
            {"origin": crawl.keys.ids[o], "peer": o, "position": at, "record": crawl.log.held[0][o][at]}
            for o, at, _ in violation.trace
        ]
    last = crawl.verdicts[-1] if crawl.verdicts else None
    return {
        "trial": crawl.trial.name,
        "version": crawl.trial.new,
        "stage": stage,
        "violations": broken,
        "harmed": [] if last is None else [crawl.keys.ids[p] for p in last.harmed],
        "proposals": 0 if last is None else last.proposals,
        "drift": moved,
        "refused": {crawl.keys.ids[p]: count for p, count in crawl.refused.items()},
    }
