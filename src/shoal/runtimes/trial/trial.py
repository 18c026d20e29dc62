"""112 Trial: what is tried, in which stages, what must hold, and when to stop.

Source: "A Deployment-First Methodology to Mechanism Design and Refinement in Distributed Systems"
(PerCom workshops 2023, arXiv 2301.04508).

A trial file is the same tree of fields in TOML::

    new = "v2"
    old = "off"
    invariants = ["no_double_count", "running_total", "agreement"]

    [[stages]]
    kind = "simulation"
    [[stages]]
    kind = "testbed"
    [[stages]]
    kind = "live"
    share = 0.25
    [[stages]]
    kind = "live"
    share = 1.0

    [abort]
    rate = 0.0
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from shoal.core import BadInput, Part
from shoal.trust.token_audit import INVARIANTS, invariants_of

__all__ = ["Abort", "Deployed", "Faults", "Stage", "Trial", "chosen"]

Deployed = Literal["off", "v1", "v2"]
"""A version flag of a peer; ``off``: chunks flow, nobody writes them down."""

_Positive = Annotated[float, Meta(gt=0)]
_Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Stage(Part):
    """One step of a trial.

    Args:
        kind: ``simulation``: on the exchange, one thing at a time; ``testbed``: processes of its own on
            the loopback; ``live``: the peers that are in use, some of them on the new version.
        share: of the live peers that run the new version.
        seconds: how long it lasts. A testbed runs to its end whatever it shows, as it harms nobody; a
            live stage ends where the abort rule strikes.
        rounds: ticks of a simulation.
    """

    kind: Literal["simulation", "testbed", "live"]
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seconds: _Positive = 6.0
    rounds: Annotated[int, Meta(ge=1)] = 60

    @property
    def name(self) -> str:
        return f"live {self.share:.0%}" if self.kind == "live" else self.kind


@dataclass(frozen=True)
class Abort(Part):
    """Stop, and roll back, where violations per proposal exceed ``rate`` (once there are ``least``)."""

    rate: _Share
    least: Annotated[int, Meta(ge=1)] = 1


@dataclass(frozen=True)
class Faults(Part):
    """What happens to peers and their messages.

    Args:
        delay_s: each message waits up to so long.
        loss: share of the answers that do not come in time.
        restart_s: every so often a random peer is killed (SIGKILL) and started again; 0: never.
        down_s: for how long it is away.
    """

    delay_s: Annotated[float, Meta(ge=0, le=1)] = 0.005
    loss: _Share = 0.05
    restart_s: Annotated[float, Meta(ge=0)] = 1.5
    down_s: Annotated[float, Meta(ge=0)] = 0.3


def _part(kind: type[Part]) -> Any:
    def make(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name in value:
            if name not in kind.known():
                raise BadInput(name, value[name], f"fields: {', '.join(kind.known())}")
        try:
            return kind(**value)
        except TypeError as error:
            raise BadInput(kind.__name__.lower(), value, str(error)) from None

    return make


def _stages(value: Any) -> tuple[Stage, ...]:
    if not isinstance(value, list | tuple):
        raise BadInput("stages", value, "a list of stages")
    return tuple(_part(Stage)(v) for v in value)


_DEFAULT = (Stage("simulation"), Stage("testbed"), Stage("live", 0.25), Stage("live", 1.0))


@dataclass(frozen=True)
class Trial(Part):
    """One mechanism on its way from simulation to all peers.

    Args:
        abort: when to stop. There is no default: who tries something says when it has failed.
        new: the version on trial.
        old: what runs until then, and again after a rollback.
        name: of the trial; with a peer's identity it decides whether that peer is a canary.
        stages: in order; the shares of the live ones rise.
        invariants: names from :data:`shoal.trust.token_audit.INVARIANTS`.
        faults: on the testbed and live.
        peers: processes.
        concurrency: transfers that each peer has under way.
        chunk: bytes.
        chunks: of the file; who has them all starts anew.
        deadline_s: after which an answer is waited for no longer, and asked for again.
        crawl_s: between two crawls of the monitor.
        warm_s: for which the live peers have run the old version when the first live stage begins.
    """

    abort: Abort | None = field(default=None, metadata={"registry": _part(Abort)})
    new: Literal["v1", "v2"] = "v2"
    old: Deployed = "off"
    name: str = "bandwidth-tokens"
    stages: tuple[Stage, ...] = field(default=_DEFAULT, metadata={"registry": _stages})
    invariants: tuple[str, ...] = tuple(INVARIANTS)
    faults: Faults = field(default=Faults(), metadata={"registry": _part(Faults)})
    peers: Annotated[int, Meta(ge=2, le=256)] = 12
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    chunk: Annotated[int, Meta(ge=1024, le=1 << 18)] = 1 << 14
    chunks: Annotated[int, Meta(ge=4, le=1 << 16)] = 256
    deadline_s: _Positive = 1.0
    crawl_s: _Positive = 0.5
    warm_s: Annotated[float, Meta(ge=0)] = 0.0

    def check(self) -> None:
        if self.abort is None:
            raise BadInput("abort", None, "a trial needs an abort rule: abort.rate, from 0 to 1")
        invariants_of(self.invariants)
        if not self.stages:
            raise BadInput("stages", [], "at least one")
        if self.new == self.old:
            raise BadInput("new", self.new, "another version than the old one")
        shares = [s.share for s in self.stages if s.kind == "live"]
        if any(b <= a for a, b in pairwise(shares)):
            raise BadInput("stages", shares, "the shares of the live stages rise")
        if any(int(share * self.peers) < 1 for share in shares):
            raise BadInput("stages", shares, f"each at least one of {self.peers} peers")

    @classmethod
    def of(cls, table: dict[str, Any]) -> Self:
        """From plain data.

        Raises:
            BadInput: a field that is unknown or cannot be used.
        """
        return _part(cls)({k: tuple(v) if k == "invariants" else v for k, v in table.items()})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From a TOML file.

        Raises:
            BadInput: unreadable, or a field that is unknown or cannot be used.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInput("file", str(path), error.strerror or "not readable") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput("file", str(path), f"not TOML: {error}") from None
        return cls.of(table)

    @property
    def stop(self) -> Abort:
        """The abort rule, which a trial always has."""
        assert self.abort is not None
        return self.abort


def chosen(name: str, ids: Sequence[str], share: float) -> list[int]:
    """Who runs the new version: the first ``share`` (rounded down) of the peers by the hash of trial and
    identity. It depends on who is there, not on their order, and a larger share keeps the smaller one's.
    """
    rank = {
        i: hashlib.blake2b(f"{name}\0{peer}".encode(), digest_size=16).digest()
        for i, peer in enumerate(ids)
    }
    return sorted(sorted(rank, key=rank.__getitem__)[: int(share * len(ids))])
