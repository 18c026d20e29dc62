"""One peer of a run that this machine holds all peers of, in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from shoal.core import ShoalError, tree
from shoal.core.load import load_object
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .desk import Desk, Patience
from .identity import Identity
from .limits import Limits
from .port import Loop, PeerPort
from .station import TransportName, parcel_limit, run_digest, start_node
from .transfer import send_blob
from .transport.base import PeerId

__all__ = ["Ready", "Seat", "Table", "part_key", "work"]


@dataclass(frozen=True)
class Seat:
    """What a worker is told when it starts.

    Args:
        plan: the run as plain data.
        method: where the method's class is, ``file.py:Name``, if it is no registered one.
        here: its seat.
        transport: how it connects.
        timeout: seconds that it waits for another peer.
        every: ticks between the parts that it sends the collector, besides the measured ones (0: none).
        resume: checkpoint to go on from, or "".
    """

    plan: Mapping[str, Any]
    method: str
    here: int
    transport: TransportName
    timeout: float
    every: int
    resume: str = ""


@dataclass(frozen=True)
class Ready:
    """What it answers when it listens."""

    peer: PeerId
    addresses: list[str]


@dataclass(frozen=True)
class Table:
    """Who holds which seat, and where; the collector's entry is the last."""

    peers: list[PeerId]
    addresses: list[list[str]]


def part_key(tick: int) -> bytes:
    """The name of a peer's part of the state after so many ticks."""
    return b"part" + tick.to_bytes(8, "little")


def plan_from(seat: Seat) -> Plan:
    """The plan that the parent described."""
    values = dict(seat.plan)
    if seat.method:
        fields = {k: v for k, v in values.pop("method").items() if k != "name"}
        kind = load_object(seat.method, "method")
        kind.slug = kind.slug or kind.__name__.lower()
        return Plan(method=kind(**fields), **values)
    return Plan(**values)


def work(seat: Seat, pipe: Connection) -> None:
    """Run one seat to the end. ``pipe`` leads to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    loop = Loop()
    try:
        _work(seat, pipe, loop)
    except ShoalError as error:
        pipe.send(str(error))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    finally:
        loop.close()


def _work(seat: Seat, pipe: Connection, loop: Loop) -> None:
    plan = plan_from(seat)
    identity = Identity.create()
    limits = Limits(first_s=min(30.0, seat.timeout), ceiling_s=max(60.0, seat.timeout))
    node = loop.run(start_node(identity, seat.transport, limits=limits))
    port = PeerPort(loop, seat.here, plan.peers)
    session = Session.open(plan, port)
    if seat.resume:
        session.restore(tree.read(Path(seat.resume)))
    pipe.send(Ready(identity.id, node.addresses()))
    table: Table = pipe.recv()
    *peers, collector = table.peers
    seats = {peer: i for i, peer in enumerate(peers)}
    for peer, addresses in zip(table.peers, table.addresses, strict=True):
        loop.call(node.learn, peer, addresses)

    def desk() -> Desk:
        return Desk(
            node,
            bytes.fromhex(run_digest(plan)),
            seat.here,
            parcel_limit(session.state),
            Patience(strict=True, most_s=seat.timeout),
            holder=lambda other: peers[other],
            seat=seats.get,
            gone=lambda other: False,
        )

    port.desk = loop.call(desk)
    pipe.send("at the desk")  # nobody begins before all can receive
    pipe.recv()
    for tick in session.ticks():
        if session.due(tick) or (seat.every and session.done % seat.every == 0):
            part = tree.dumps(session.saved())
            loop.run(send_blob(node, collector, part_key(session.done), [part], kind="part"))
    loop.run(port.desk.flush(seat.timeout))
    pipe.send(port.desk.wire)
    pipe.recv()  # the others may still need what is on its way
    loop.run(port.desk.close())
    loop.run(node.stop())
