"""``--runtime p2p``: every peer a process of its own on this machine, all over real sockets.

The same node, transport, transfer and exchange as between machines (``shoal peer run``), with all peers
waited for. The process that started them is only another peer, the collector: it is sent each peer's
state where a measurement or a checkpoint is due, and makes of it what one block of all peers would.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from shoal.core import BadInput, Report, RunFailed, methods, tree
from shoal.runtimes.base import Plan, Progress, Runtime, runtimes
from shoal.runtimes.collector import Collector

from .frames import Refused
from .identity import Identity
from .node import Node
from .port import Loop
from .station import TransportName, parcel_limit, start_node
from .transfer import Receiver
from .transport.base import PeerId
from .worker import Ready, Seat, Table, work

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
        collector = Collector(plan, [1] * plan.peers)
        session = collector.session
        if resume:
            assert checkpoint is not None
            session.restore(tree.read(checkpoint))
        if not session.report.rows:
            session.row(-1, 0.0)
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        loop = Loop()
        crowd = _Crowd(self, plan, str(checkpoint) if resume else "")
        try:
            inbox = _Inbox(loop, plan, parcel_limit(session.state))
            loop.run(inbox.start(self.transport))
            crowd.gather(inbox)
            self._follow(plan, collector, inbox, crowd, progress, checkpoint)
        finally:
            crowd.close()
            loop.close()
        report = collector.close()
        report.final["transport_bytes"] = crowd.wire
        report.notes.append(f"{plan.peers} processes over {self.transport} on loopback.")
        return report

    def _follow(
        self,
        plan: Plan,
        collector: Collector,
        inbox: _Inbox,
        crowd: _Crowd,
        progress: Progress | None,
        checkpoint: Path | None,
    ) -> None:
        every = self.checkpoint_every if checkpoint is not None else 0
        for done in range(collector.session.done + 1, plan.rounds + 1):
            measured = done == plan.rounds or done % plan.every == 0
            kept = bool(every) and (done % every == 0 or done == plan.rounds)
            if not measured and not kept:
                continue
            try:
                parts = inbox.wait(done, crowd)
            except KeyboardInterrupt:
                collector.session.report.status = "stopped"
                return
            values = collector.join(parts)
            row = collector.measure(values) if measured else None
            values["run.rows"] = list(collector.session.report.rows)
            if kept:
                assert checkpoint is not None
                tree.save(values, checkpoint)
            if progress is not None:
                bytes_sent = int(values["net.meter/totals"][0])
                progress(done, plan.rounds, row, bytes_sent)
        crowd.finish()


class _Inbox:
    """What the collector has been sent."""

    def __init__(self, loop: Loop, plan: Plan, limit: int) -> None:
        self.loop, self.plan, self.limit = loop, plan, limit
        self.parts: dict[int, dict[int, dict[str, Any]]] = {}
        self.seats: dict[PeerId, int] = {}
        self.node: Node

    async def start(self, transport: TransportName) -> None:
        self.node = await start_node(Identity.create(), transport)
        Receiver(self.node, lambda peer, *_: peer in self.seats, 4 * self.limit, self._done, kind="part")

    async def _done(self, peer: PeerId, key: bytes, data: memoryview) -> None:
        tick = int.from_bytes(key[4:], "little")
        if key[:4] != b"part" or not 0 < tick <= self.plan.rounds:
            raise Refused("no such part")
        try:
            values = await asyncio.to_thread(tree.loads, bytes(data))
        except ValueError:
            raise Refused("no state") from None
        self.parts.setdefault(tick, {})[self.seats[peer]] = values

    def wait(self, done: int, crowd: _Crowd) -> list[dict[str, Any]]:
        """Everyone's part after ``done`` ticks, by seat."""
        while len(self.parts.get(done, {})) < self.plan.peers:
            crowd.check()
            time.sleep(0.01)
        held = self.parts.pop(done)
        return [held[i] for i in range(self.plan.peers)]


class _Crowd:
    """The peers' processes."""

    def __init__(self, where: PeerToPeer, plan: Plan, resume: str) -> None:
        # Forked from a process that has loaded everything and runs nothing: torch is loaded once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            [
                "shoal.runtimes.p2p.worker",
                "shoal.runtimes.p2p.runtime",
                "shoal.runtimes.p2p.preload",
            ]
        )
        self.plan, self.where = plan, where
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.wire = 0
        kind = type(plan.method)
        known = methods.classes().get(plan.method.slug) is kind
        method = "" if known else f"{inspect.getfile(kind)}:{kind.__qualname__}"
        for here in range(plan.peers):
            mine, theirs = self.context.Pipe()
            seat = Seat(
                plan.spec(), method, here, where.transport, where.timeout, where.checkpoint_every, resume
            )
            process = self.context.Process(target=work, args=(seat, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(mine)

    def gather(self, inbox: _Inbox) -> None:
        """Learn where everyone is, tell everyone, and let them begin."""
        ready = [self._receive(i) for i in range(len(self.pipes))]
        assert all(isinstance(r, Ready) for r in ready)
        inbox.seats = {r.peer: i for i, r in enumerate(ready)}
        peers = [*(r.peer for r in ready), inbox.node.id]
        addresses = [*(r.addresses for r in ready), inbox.node.addresses()]
        for pipe in self.pipes:
            pipe.send(Table(peers, addresses))
        for i in range(len(self.pipes)):
            self._receive(i)
        for pipe in self.pipes:
            pipe.send("begin")

    def check(self) -> None:
        """See that all are still there.

        Raises:
            RunFailed, BadInput: one of them is not: what it said.
        """
        for i, (pipe, process) in enumerate(zip(self.pipes, self.processes, strict=True)):
            if pipe.poll():
                said = self._receive(i)
                if isinstance(said, int):
                    self.wire += said
                    continue
            elif not process.is_alive():
                raise RunFailed(f"the process of peer {i} ended (exit status {process.exitcode})")

    def finish(self) -> None:
        """Everyone is through."""
        while self.wire_told < len(self.pipes):
            self.check()
            time.sleep(0.005)
        for pipe in self.pipes:
            pipe.send("bye")
        for process in self.processes:
            process.join(10)

    wire_told = 0

    def _receive(self, i: int) -> Any:
        deadline = time.monotonic() + self.where.timeout
        while not self.pipes[i].poll(0.2):
            if not self.processes[i].is_alive():
                raise RunFailed(f"the process of peer {i} ended (exit status {self.processes[i].exitcode})")
            if time.monotonic() > deadline:
                raise RunFailed(f"the process of peer {i} did not start within {self.where.timeout:g} s")
        try:
            said = self.pipes[i].recv()
        except EOFError:
            raise RunFailed(f"the process of peer {i} ended") from None
        if isinstance(said, str) and said != "at the desk":
            raise RunFailed(f"peer {i}: {said}")
        if isinstance(said, int):
            self.wire_told += 1
        return said

    def close(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        for pipe in self.pipes:
            pipe.close()
