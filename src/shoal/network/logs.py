"""VersionedLog: append-only logs, one per origin, that spread by pulls of what is missing.

Every peer writes only its own log and holds copies of the others', each a prefix of the original, so
a version vector (how many entries of each origin are held) says all about what a peer knows: pulls
are idempotent and their order does not matter. Entries are JSON-like values and travel verbatim.

Source: the anti-entropy of Demers et al., "Epidemic algorithms for replicated database maintenance"
(PODC 1987), with the version vectors of Golding's timestamped anti-entropy (1992).

Signatures are optional. Unsigned, a peer could put words into another's mouth when it passes a log
on; signed, every entry carries its origin's signature over (origin, position, value) and copies are
checked as they come in. A signature takes 88 bytes on the wire (base64) and about 0.2 ms to check.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor

from shoal.core import BadInput, Graph, Net, Tick, need

__all__ = ["Keys", "SeededKeys", "VersionedLog", "mutual"]

Check = Callable[[int, Any], None]
"""Raises BadInput where an origin's entry cannot be used."""
_Vector = list[int]
_Missing = list[tuple[int, int, list[Any]]]


class Keys(Protocol):
    """Signs as a peer of this block and checks anybody's signatures."""

    def sign(self, peer: int, message: bytes) -> bytes: ...

    def verify(self, peer: int, message: bytes, signature: bytes) -> bool: ...


@dataclass(frozen=True)
class SeededKeys:
    """Ed25519 identities drawn from the seed of a run: real signatures for simulated peers.

    Whoever knows the seed can forge them; between real machines a runtime's own identities serve.
    """

    seed: int

    def sign(self, peer: int, message: bytes) -> bytes:
        return _private(self.seed, peer).sign(message)

    def verify(self, peer: int, message: bytes, signature: bytes) -> bool:
        invalid = need("cryptography.exceptions", "p2p").InvalidSignature
        try:
            _public(self.seed, peer).verify(signature, message)
        except invalid:
            return False
        return True


@lru_cache(maxsize=1 << 14)
def _private(seed: int, peer: int) -> Any:
    ed25519 = need("cryptography.hazmat.primitives.asymmetric.ed25519", "p2p")
    secret = hashlib.blake2b(f"{seed}\0identity\0{peer}".encode(), digest_size=32).digest()
    return ed25519.Ed25519PrivateKey.from_private_bytes(secret)


@lru_cache(maxsize=1 << 14)
def _public(seed: int, peer: int) -> Any:
    return _private(seed, peer).public_key()


def mutual(graph: Graph) -> tuple[Tensor, Tensor]:
    """Whom each peer can both ask and hear: padded neighbour numbers int64 [n, K] (ascending), and
    how many there are, int64 [n]."""
    forth = graph.keep(torch.isin(graph.dst * graph.n + graph.src, graph.src * graph.n + graph.dst))
    edge, mask = forth.neighbours()
    if not forth.edges:
        return edge, mask.sum(1)
    return torch.where(mask, forth.src[edge], -1), mask.sum(1)


@dataclass(frozen=True)
class VersionedLog:
    """What the P peers of a block hold of the logs of all n origins. A state tree; never changed in place.

    Args:
        held: P lists; ``held[r][o]`` is row r's copy of the log of origin o, a list of records. A
            record is the value itself, or [value, signature in base64] where the log is signed.
    """

    held: list[list[list[Any]]]

    @staticmethod
    def empty(rows: int, origins: int) -> VersionedLog:
        return VersionedLog([[[] for _ in range(origins)] for _ in range(rows)])

    def versions(self, row: int) -> _Vector:
        """How many entries row ``row`` holds of each origin."""
        return [len(log) for log in self.held[row]]

    def values(self, row: int, origin: int, signed: bool = False) -> list[Any]:
        """The entries of one copy, without their signatures."""
        log = self.held[row][origin]
        return [record[0] for record in log] if signed else log

    def append(
        self, row: int, origin: int, values: Sequence[Any], keys: Keys | None = None
    ) -> VersionedLog:
        """Row ``row``, which is peer ``origin`` itself, writes its own log."""
        if not values:
            return self
        records = list(values)
        if keys is not None:
            start = len(self.held[row][origin])
            records = [[v, _seal(keys, origin, start + i, v)] for i, v in enumerate(values)]
        return self._with(row, {origin: self.held[row][origin] + records})

    def missing(self, row: int, versions: Any) -> _Missing:
        """What row ``row`` holds beyond a version vector: (origin, first position, records) each.

        Raises:
            BadInput: not a version vector of these origins.
        """
        mine = self.held[row]
        seen = _told(versions, _Vector, "versions")
        if len(seen) != len(mine) or min(seen, default=0) < 0:
            raise BadInput("versions", versions, f"{len(mine)} counts, one for each origin")
        return [(o, v, log[v:]) for o, (v, log) in enumerate(zip(seen, mine, strict=True)) if len(log) > v]

    def merge(
        self, row: int, news: Any, keys: Keys | None = None, check: Check | None = None
    ) -> VersionedLog:
        """Row ``row`` takes what another peer sent, all of it or nothing. Entries it has are skipped.

        Raises:
            BadInput: malformed; unknown origin; a gap in the sequence; an entry that is not signed by
                its origin; whatever ``check(origin, value)`` refuses.
        """
        changed: dict[int, list[Any]] = {}
        for origin, first, records in _told(news, _Missing, "entries"):
            if not 0 <= origin < len(self.held[row]):
                raise BadInput("entries", origin, f"origins are numbered 0 to {len(self.held[row]) - 1}")
            mine = changed.get(origin, self.held[row][origin])
            if not 0 <= first <= len(mine):
                raise BadInput("entries", first, f"a gap: origin {origin} is held up to {len(mine)}")
            fresh = records[len(mine) - first :]
            for position, record in enumerate(fresh, len(mine)):
                value = record if keys is None else _opened(keys, origin, position, record)
                if check is not None:
                    check(origin, value)
            if fresh:
                changed[origin] = mine + fresh
        return self._with(row, changed) if changed else self

    def pull(
        self, net: Net, tick: Tick, ask: Sequence[int], keys: Keys | None = None, check: Check | None = None
    ) -> tuple[VersionedLog, list[int]]:
        """Row r asks peer ``ask[r]`` (-1: nobody) for what it misses; two :meth:`Net.share` calls.

        Returns:
            (the logs, the rows that learnt something). What cannot be used is dropped whole: it will be
            missing, and asked for, again.
        """
        asked = net.share([{} if a < 0 else {a: self.versions(r)} for r, a in enumerate(ask)], tick)
        return self._answer(net, tick, asked, keys, check)

    def push(
        self, net: Net, tick: Tick, to: Sequence[int], keys: Keys | None = None, check: Check | None = None
    ) -> tuple[VersionedLog, list[int]]:
        """Row r offers its news to peer ``to[r]`` (-1: nobody), which then pulls from it."""
        offers = net.share([{} if a < 0 else {a: True} for a in to], tick)
        asked = net.share([{s: self.versions(r) for s in box} for r, box in enumerate(offers)], tick)
        return self._answer(net, tick, asked, keys, check)

    def _answer(
        self, net: Net, tick: Tick, asked: list[dict[int, Any]], keys: Keys | None, check: Check | None
    ) -> tuple[VersionedLog, list[int]]:
        replies: list[dict[int, Any]] = [{} for _ in asked]
        for row, box in enumerate(asked):
            for peer, versions in box.items():
                try:
                    found = self.missing(row, versions)
                except BadInput:  # a damaged request gets no answer
                    continue
                if found:
                    replies[row][peer] = found
        log, learnt = self, []
        for row, box in enumerate(net.share(replies, tick)):
            for news in box.values():
                try:
                    after = log.merge(row, news, keys, check)
                except BadInput:  # a damaged or forged reply is not believed
                    continue
                if after is not log:
                    log = after
                    learnt.append(row)
        return log, sorted(set(learnt))

    def _with(self, row: int, logs: dict[int, list[Any]]) -> VersionedLog:
        held = list(self.held)
        held[row] = list(held[row])
        for origin, log in logs.items():
            held[row][origin] = log
        return replace(self, held=held)


def _told(value: Any, kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput(what, value, str(error).lower()) from None


def _message(origin: int, position: int, value: Any) -> bytes:
    return msgspec.msgpack.encode([origin, position, value])


def _seal(keys: Keys, origin: int, position: int, value: Any) -> str:
    return base64.b64encode(keys.sign(origin, _message(origin, position, value))).decode()


def _opened(keys: Keys, origin: int, position: int, record: Any) -> Any:
    """The value of a signed record."""
    match record:
        case [value, str(seal)]:
            try:
                signature = base64.b64decode(seal, validate=True)
            except ValueError:
                signature = b""
            if keys.verify(origin, _message(origin, position, value), signature):
                return value
    raise BadInput("entries", record, f"entry {position} of origin {origin} is not signed by it")
