"""One peer of a run that this machine holds all peers of, in a process of its own."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from shoal.core import RunFailed, ShoalError, tree
from shoal.core.load import load_object
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .desk import Desk, Patience
from .heap import keep_heap
from .identity import Identity
from .limits import Limits
from .port import Loop, PeerPort
from .station import TransportName, parcel_limit, run_digest, start_node
from .transfer import send_blob
from .transport.base import PeerId

__all__ = [
    "Begin",
    "Bye",
    "Failed",
    "Job",
    "Ready",
    "Said",
    "Seated",
    "Table",
    "Through",
    "part_key",
    "work",
]


class Job(msgspec.Struct, frozen=True):
    """A run, as its peers' processes are told of it.

    Args:
        plan: as plain data.
        method: where the method's class is, ``file.py:Name``, if it is no registered one.
        modules: that define the plan's parts.
        transport: how the peers connect.
        timeout: seconds that a peer waits for another.
        every: ticks between the parts that a peer sends the collector, besides the measured ones (0: none).
        resume: checkpoint to go on from, or "".
    """

    plan: dict[str, Any]
    method: str
    modules: list[str]
    transport: TransportName
    timeout: float
    every: int
    resume: str

    def open(self) -> Plan:
        """The plan that this describes."""
        values = dict(self.plan)
        if not self.method:
            return Plan(**values)
        fields = {k: v for k, v in values.pop("method").items() if k != "name"}
        kind = load_object(self.method, "method")
        kind.slug = kind.slug or kind.__name__.lower()
        return Plan(method=kind(**fields), **values)


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A peer listens."""

    peer: PeerId
    addresses: list[str]


class Table(msgspec.Struct, frozen=True, tag=True):
    """Who holds which seat, and where; the collector's entry is the last."""

    peers: list[PeerId]
    addresses: list[list[str]]


class Seated(msgspec.Struct, frozen=True, tag=True):
    """A peer can receive."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Everybody can."""


class Through(msgspec.Struct, frozen=True, tag=True):
    """A peer has done all ticks, and has written so many bytes of parcels."""

    wire: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A peer gives up."""

    why: str


class Bye(msgspec.Struct, frozen=True, tag=True):
    """Everybody is through."""


Said = Ready | Seated | Through | Failed
Told = Table | Begin | Bye


def part_key(tick: int) -> bytes:
    """The name of a peer's part of the state after so many ticks."""
    return b"part" + tick.to_bytes(8, "little")


class _Parent:
    """The process that wants this run. When it goes, so does this one, whatever it is at."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="shoal parent", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self._told.put(msgspec.msgpack.decode(self.pipe.recv_bytes(), type=Told))
        except (EOFError, OSError):
            os._exit(1)

    def tell(self, said: Said) -> None:
        self.pipe.send_bytes(msgspec.msgpack.encode(said))

    def hear(self) -> Any:
        return self._told.get()


def work(job: Job, plan: Plan, here: int, pipe: Connection) -> int:
    """Run one seat to the end; returns the exit status. ``pipe`` leads to the process that wants it."""
    keep_heap()
    parent, loop = _Parent(pipe), Loop()
    try:
        _work(job, plan, here, parent, loop)
    except ShoalError as error:
        parent.tell(Failed(str(error)))
        return 1
    except Exception as error:  # whatever the user's code raises ends the run with one line
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"line {last.lineno} of {Path(last.filename).name}"
        parent.tell(Failed(" ".join(f"{type(error).__name__}: {error} ({where})".split())))
        return 1
    finally:
        loop.close()
    return 0


def _work(job: Job, plan: Plan, here: int, parent: _Parent, loop: Loop) -> None:
    identity = Identity.create()
    limits = Limits(first_s=min(30.0, job.timeout), ceiling_s=max(60.0, job.timeout))
    node = loop.run(start_node(identity, job.transport, limits=limits))
    port = PeerPort(loop, here, plan.peers)
    session = Session.open(plan, port)
    if job.resume:
        session.restore(tree.read(Path(job.resume)))
    parent.tell(Ready(identity.id, node.addresses()))
    table: Table = parent.hear()
    *peers, collector = table.peers
    seats = {peer: i for i, peer in enumerate(peers)}
    for peer, addresses in zip(table.peers, table.addresses, strict=True):
        loop.call(node.learn, peer, addresses)

    def desk() -> Desk:
        return Desk(
            node,
            bytes.fromhex(run_digest(plan)),
            here,
            parcel_limit(session.state),
            Patience(strict=True, most_s=job.timeout),
            holder=lambda other: peers[other],
            seat=seats.get,
            gone=lambda other: False,
        )

    port.desk = loop.call(desk)
    parent.tell(Seated())  # nobody begins before all can receive
    parent.hear()
    for tick in session.ticks():
        if session.due(tick) or (job.every and session.done % job.every == 0):
            part = tree.dumps(session.saved())
            loop.run(send_blob(node, collector, part_key(session.done), [part], kind="part"))
    loop.run(port.desk.flush(job.timeout))
    if port.missed():
        raise RunFailed("a parcel could not be delivered")
    parent.tell(Through(port.desk.wire))
    parent.hear()  # the others may still need what is on its way
    loop.run(port.desk.close())
    loop.run(node.stop())
