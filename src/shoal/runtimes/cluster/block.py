"""One block of a run on a cluster, in a process of its own: what an actor does."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core import RunFailed, Tick, tree
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .port import DistPort, Lost, TCPStore, meeting_point

__all__ = ["Block", "Said", "Seat"]

SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Seat:
    """A block's place among the blocks.

    Args:
        here: its number.
        sizes: peers of each block.
        meet: address and port at which the blocks meet.
        backend, timeout: see :class:`shoal.runtimes.cluster.port.DistPort`.
        gone: (tick, bool [n]): peers that are lost from that tick on.
    """

    here: int
    sizes: Sequence[int]
    meet: tuple[str, int]
    backend: str
    timeout: float
    gone: Sequence[tuple[int, torch.Tensor]] = ()


@dataclass(frozen=True)
class Said:
    """What a block tells of itself.

    Args:
        done: ticks.
        metered: bytes of its peers' messages so far.
        carried: bytes that went to other blocks since it took its seat.
        saved: its part of a checkpoint, where one was asked for.
        lost: another block is gone: why, or "".
        failed: this one cannot go on: why, or "".
    """

    done: int
    metered: int = 0
    carried: int = 0
    saved: dict[str, Any] | None = None
    lost: str = ""
    failed: str = ""


class Block:
    """A block of peers. Whatever stops it cuts its connections too, so that the others learn of it.

    Args:
        plan: the run.
        threads: of torch.
        cwd: the folder that relative paths of the plan start from, where it exists here.
        address: of this machine, as the others reach it; "": all blocks are on one machine.
    """

    def __init__(self, plan: Plan, threads: int, cwd: str, address: str = "") -> None:
        self.plan, self.address = plan, address
        torch.set_num_threads(threads)
        if Path(cwd).is_dir():
            os.chdir(cwd)
        self.port: DistPort | None = None
        self.session: Session | None = None
        self.ticks: Iterator[Tick] = iter(())
        self.store: TCPStore | None = None
        name = _interface(address)
        if name:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)

    def host(self) -> tuple[str, int]:
        """Open a place to meet: (address, port)."""
        address = self.address or "127.0.0.1"
        self.store = meeting_point(address)
        return address, self.store.port

    def sit(self, seat: Seat, start: Mapping[str, Any] | None) -> Said:
        """Form a group with the others and take up the run at a checkpoint of all peers, or at tick 0."""
        self.leave()
        try:
            store = self.store if seat.here == 0 else meeting_point(*seat.meet)
            assert store is not None
            self.port = DistPort(seat.here, seat.sizes, store, seat.backend, seat.timeout)
            self.session = session = Session.open(self.plan, self.port)
            if start is not None:
                session.restore(start)
            for since, peers in seat.gone:
                session.lose(peers, since)
            self.ticks = session.ticks()
        except Lost as error:
            return self._end(lost=str(error))
        except RunFailed as error:
            return self._end(failed=str(error))
        return self._said(False)

    def advance(self, until: int, keep: bool) -> Said:
        """Run until ``until`` ticks are done; with ``keep`` tell the state too."""
        assert self.session is not None
        try:
            while self.session.done < until:
                next(self.ticks)
        except Lost as error:
            return self._end(lost=str(error))
        except RunFailed as error:
            return self._end(failed=str(error))
        return self._said(keep)

    def leave(self) -> None:
        """Cut the connections to the other blocks."""
        if self.port is not None:
            self.port.close()
            self.port = None

    def _said(self, keep: bool) -> Said:
        assert self.session is not None and self.port is not None
        saved = tree.leaves(self.session.saved()) if keep else None
        return Said(self.session.done, self.session.net.meter.total, self.port.sent, saved)

    def _end(self, lost: str = "", failed: str = "") -> Said:
        self.leave()
        return Said(self.session.done if self.session is not None else 0, lost=lost, failed=failed)


def _interface(address: str) -> str | None:
    """The network interface that has this address: gloo would else take the one of the host's name."""
    if not address:
        return None
    import fcntl  # where there is no fork there is none

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name[:15].encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
