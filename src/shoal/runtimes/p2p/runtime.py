"""``--runtime p2p``: every peer a process of its own on this machine, all over real sockets.

The same node, transport, transfer and exchange as between machines (``shoal peer run``), with all peers
waited for. The process that started them is only another peer, the collector: it is sent each peer's
state where a measurement or a checkpoint is due, and makes of it what one block of all peers would.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from shoal.core import BadInput, Part, Report, methods, tree
from shoal.runtimes.base import Plan, Progress, Runtime, runtimes
from shoal.runtimes.collector import Collector

from .crowd import Crowd
from .frames import Refused
from .identity import Identity
from .node import Node
from .nursery import Nursery
from .port import Loop
from .station import TransportName, parcel_limit, start_node
from .transfer import Receiver
from .transport.base import PeerId
from .worker import Job

__all__ = ["PeerToPeer"]

MOST = 64
"""Processes on one machine."""


@runtimes.register("p2p")
@dataclass(frozen=True)
class PeerToPeer(Runtime):
    """One process a peer, over loopback.

    Args:
        transport: what connects them: ``iroh`` (QUIC) or ``tcp`` (with Noise).
        timeout: seconds that a peer waits for another before the run fails.
        checkpoint_every: ticks between checkpoints (0: none).
    """

    transport: TransportName = "tcp"
    timeout: Annotated[float, Meta(gt=0)] = 120.0
    checkpoint_every: Annotated[int, Meta(ge=0)] = 10

    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        self._check(plan, checkpoint, resume)
        with Nursery() as nursery:
            return self.within(nursery, plan, progress=progress, checkpoint=checkpoint, resume=resume)

    def within(
        self,
        nursery: Nursery,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        """As :meth:`run`, with peers from a nursery that may serve several runs, one after the other."""
        self._check(plan, checkpoint, resume)
        collector = Collector(plan, [1] * plan.peers)
        session = collector.session
        if resume:
            assert checkpoint is not None
            session.restore(tree.read(checkpoint))
        if not session.report.rows:
            session.row(-1, 0.0)
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        loop, inbox = Loop(), _Inbox(plan, parcel_limit(session.state))
        try:
            nursery.load(self._job(plan, checkpoint, resume))
            with Crowd(nursery, plan.peers, self.timeout) as crowd:
                loop.run(inbox.start(self.transport))
                inbox.meet(crowd)
                self._follow(collector, inbox, crowd, progress, checkpoint)
            session.report.final["transport_bytes"] = crowd.wire
        except KeyboardInterrupt:
            session.report.status = "stopped"
            if inbox.last:
                collector.measure(inbox.last)  # anew: it may have been in the middle of that
        finally:
            loop.close()
        report = collector.close()
        report.notes.append(f"{plan.peers} processes over {self.transport} on loopback.")
        return report

    def _check(self, plan: Plan, checkpoint: Path | None, resume: bool) -> None:
        if plan.peers > MOST:
            raise BadInput("peers", plan.peers, f"at most {MOST} processes; local or cluster hold more")
        if resume and checkpoint is None:
            raise BadInput("resume", True, "needs the folder of the run to resume")
        attack = plan.network.attack
        if (
            attack is not None
            and attack.informed
            and bool(plan.network.hostiles(plan.peers, plan.seed).any())
        ):
            raise BadInput(
                "network.attack", attack.slug, "sees others' messages: only where all peers are simulated"
            )

    def _job(self, plan: Plan, checkpoint: Path | None, resume: bool) -> Job:
        """The run in words; other processes cannot be handed objects.

        Raises:
            BadInput: it holds an object that no name leads to.
        """
        spec = plan.spec()
        _named(spec, "")
        kind = type(plan.method)
        known = methods.classes().get(plan.method.slug) is kind
        return Job(
            plan=spec,
            method="" if known else f"{inspect.getfile(kind)}:{kind.__qualname__}",
            modules=sorted({m for m in _modules(plan) if known or m != kind.__module__}),
            transport=self.transport,
            timeout=self.timeout,
            every=self.checkpoint_every if checkpoint is not None else 0,
            resume=str(checkpoint) if resume else "",
        )

    def _follow(
        self,
        collector: Collector,
        inbox: _Inbox,
        crowd: Crowd,
        progress: Progress | None,
        checkpoint: Path | None,
    ) -> None:
        plan, every = inbox.plan, self.checkpoint_every if checkpoint is not None else 0
        for done in range(collector.session.done + 1, plan.rounds + 1):
            measured = done == plan.rounds or done % plan.every == 0
            kept = bool(every) and (done % every == 0 or done == plan.rounds)
            if not measured and not kept:
                continue
            values = collector.join(inbox.wait(done, crowd))
            inbox.last = {**values, "run.rows": list(values["run.rows"])}
            row = collector.measure(values) if measured else None
            if kept:
                assert checkpoint is not None
                tree.save(values, checkpoint)
            if progress is not None:
                progress(done, plan.rounds, row, int(values["net.meter/totals"][0]))
        crowd.finish()


class _Inbox:
    """What the collector has been sent."""

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan, self.limit = plan, limit
        self.parts: dict[int, dict[int, dict[str, Any]]] = {}
        self.last: dict[str, Any] = {}
        self.seats: dict[PeerId, int] = {}
        self.came = threading.Event()
        self.node: Node

    async def start(self, transport: TransportName) -> None:
        self.node = await start_node(Identity.create(), transport)
        Receiver(self.node, lambda peer, *_: peer in self.seats, 4 * self.limit, self._done, kind="part")

    def meet(self, crowd: Crowd) -> None:
        """Learn where everyone is, tell everyone, and let them begin."""
        ready = crowd.gather()
        self.seats = {r.peer: i for i, r in enumerate(ready)}
        crowd.begin(
            [*(r.peer for r in ready), self.node.id],
            [*(r.addresses for r in ready), self.node.addresses()],
        )

    async def _done(self, peer: PeerId, key: bytes, data: memoryview) -> None:
        tick = int.from_bytes(key[4:], "little")
        if key[:4] != b"part" or not 0 < tick <= self.plan.rounds:
            raise Refused("no such part")
        try:
            values = await asyncio.to_thread(tree.loads, bytes(data))
        except ValueError:
            raise Refused("no state") from None
        self.parts.setdefault(tick, {})[self.seats[peer]] = values
        self.came.set()

    def wait(self, done: int, crowd: Crowd) -> list[dict[str, Any]]:
        """Everyone's part after ``done`` ticks, by seat."""
        while len(self.parts.get(done, {})) < self.plan.peers:
            crowd.check()
            self.came.wait(0.05)
            self.came.clear()
        held = self.parts.pop(done)
        return [held[i] for i in range(self.plan.peers)]


def _named(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _named(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            _named(inner, path)
    elif isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        raise BadInput(path, value, "a name or file.py:Name; other processes cannot be handed an object")


def _modules(part: Part) -> Iterator[str]:
    """Where the classes of a part, and of the parts in it, are defined."""
    if part.slug:
        yield type(part).__module__
    for field in fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Part):
                yield from _modules(inner)
