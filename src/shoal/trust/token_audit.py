"""Invariants of bandwidth tokens, as an auditor finds them in the half-blocks that peers have signed.

An auditor sees logs only, each a prefix of what its origin has written, pulled at different times. An
invariant therefore speaks only of what no later entry can put right, and says with which entries it is
broken: no smaller set of them shows the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.core import BadInput

from .bandwidth_tokens import Half

__all__ = ["INVARIANTS", "Entry", "Logs", "Violation", "audit", "invariants_of"]

Entry = tuple[int, int, Half]
"""(origin, position in its log, half-block)."""
Logs = Mapping[int, Sequence[Entry]]
"""Entries by origin, by position; gaps are allowed."""


@dataclass(frozen=True)
class Violation:
    """One broken invariant.

    Args:
        invariant: its name.
        trace: the entries that show it, the culprit's last.
    """

    invariant: str
    trace: tuple[Entry, ...]

    @property
    def parties(self) -> set[int]:
        """Who is harmed: the peer whose books are wrong and its partner in that block."""
        origin, _, half = self.trace[-1]
        return {origin, half.partner}

    @property
    def key(self) -> tuple[str, int, int]:
        """Its name: the invariant, and where the entry stands that breaks it."""
        return self.invariant, self.trace[-1][0], self.trace[-1][1]


def no_double_count(logs: Logs) -> Iterable[Violation]:
    """A giver counts a transfer once: no two of its halves answer the same proposal."""
    for entries in logs.values():
        seen: dict[tuple[str, int, int], Entry] = {}
        for entry in entries:
            half = entry[2]
            if half.side != "give":
                continue
            first = seen.setdefault((half.version, half.partner, half.number), entry)
            if first is not entry:
                yield Violation("no_double_count", (first, entry))


def running_total(logs: Logs) -> Iterable[Violation]:
    """Totals go on from the one before: of the whole log in v1, of pair and direction in v2."""
    for entries in logs.values():
        last: dict[tuple[object, ...], Entry] = {}
        for entry in entries:
            half = entry[2]
            sign = -1 if half.version == "v1" and half.side == "take" else 1
            key = (half.version,) if half.version == "v1" else ("v2", half.side, half.partner)
            before = last.get(key)
            last[key] = entry
            if before is None or (half.version == "v1" and before[1] + 1 != entry[1]):
                continue  # what stood between is not known
            if half.total != before[2].total + sign * half.amount:
                yield Violation("running_total", (before, entry))


def agreement(logs: Logs) -> Iterable[Violation]:
    """A giver's half answers a proposal of that amount; proposals come in the order of their numbers,
    so that a later one shows that an earlier one, not found, was never made."""
    asked: dict[tuple[object, ...], dict[int, Entry]] = {}
    last: dict[tuple[object, ...], Entry] = {}
    for entries in logs.values():
        for entry in entries:
            if entry[2].side == "take":
                key = _sequence(entry[0], entry[2].partner, entry[2])
                asked.setdefault(key, {}).setdefault(entry[2].number, entry)
                last[key] = entry
    for origin, entries in logs.items():
        for entry in entries:
            half = entry[2]
            if half.side != "give":
                continue
            key = _sequence(half.partner, origin, half)
            same, later = asked.get(key, {}).get(half.number), last.get(key)
            if same is not None and (same[2].partner, same[2].amount) != (origin, half.amount):
                yield Violation("agreement", (same, entry))
            elif same is None and later is not None and later[2].number > half.number:
                yield Violation("agreement", (later, entry))


def _sequence(taker: int, giver: int, half: Half) -> tuple[object, ...]:
    """Whose proposals are counted together: v1 all of a taker's, v2 those to one giver."""
    return (half.version, taker) if half.version == "v1" else (half.version, taker, giver)


INVARIANTS: dict[str, Callable[[Logs], Iterable[Violation]]] = {
    check.__name__: check for check in (no_double_count, running_total, agreement)
}


def invariants_of(names: Iterable[str]) -> tuple[str, ...]:
    """Names of invariants, checked.

    Raises:
        BadInput: none, or one that is not known.
    """
    named = tuple(names)
    for name in named:
        if name not in INVARIANTS:
            raise BadInput("invariants", name, f"unknown invariant; known: {', '.join(INVARIANTS)}")
    if not named:
        raise BadInput("invariants", [], f"at least one of {', '.join(INVARIANTS)}")
    return named


def audit(logs: Logs, invariants: Sequence[str] = tuple(INVARIANTS)) -> list[Violation]:
    """Every violation, in the order of the invariants, the origins and their entries."""
    ordered = {origin: logs[origin] for origin in sorted(logs)}
    return [v for name in invariants for v in INVARIANTS[name](ordered)]
