"""The processes of one run's peers, as the process that wants the run sees them."""

from __future__ import annotations

import signal
from multiprocessing.connection import wait
from types import TracebackType
from typing import TypeVar

import msgspec

from shoal.core import RunFailed

from .nursery import Nursery
from .transport.base import Address, PeerId
from .worker import Begin, Bye, Failed, Ready, Said, Seated, Table, Through, Told

__all__ = ["Crowd"]

S = TypeVar("S")


class Crowd:
    """A context manager: at its end none of the processes is left.

    Args:
        nursery: which has loaded the run.
        count: of the peers.
        timeout: seconds that a peer may take to start.

    Attributes:
        wire: bytes of parcels that the peers have written, once all are through.
    """

    def __init__(self, nursery: Nursery, count: int, timeout: float) -> None:
        self._nursery, self._timeout, self.wire, self._through = nursery, timeout, 0, 0
        self.pids, self._pipes = nursery.bear(count)

    def gather(self) -> list[Ready]:
        """Everyone's name and addresses, by seat, as soon as all listen."""
        return [self._expect(i, Ready) for i in range(len(self._pipes))]

    def begin(self, peers: list[PeerId], addresses: list[list[Address]]) -> None:
        """Tell everyone where all are, and let them begin as soon as all can receive."""
        self._tell(Table(peers, addresses))
        for i in range(len(self._pipes)):
            self._expect(i, Seated)
        self._tell(Begin())

    def check(self) -> None:
        """See that all are there.

        Raises:
            RunFailed: one is not: what it said, or how it ended.
        """
        for i, pipe in enumerate(self._pipes):
            if pipe.poll():
                self._through += 1
                self.wire += self._hear(i, Through).wire

    def finish(self) -> None:
        """Wait until everyone is through, and let them go. Raises as :meth:`check`."""
        while self._through < len(self._pipes):
            wait(self._pipes)
            self.check()
        self._tell(Bye())
        for pipe in self._pipes:
            pipe.poll(self._timeout)  # ends with its process

    def _tell(self, told: Told) -> None:
        said = msgspec.msgpack.encode(told)
        for i, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(said)
            except OSError:
                raise self._ended(i) from None

    def _expect(self, i: int, kind: type[S]) -> S:
        if not self._pipes[i].poll(self._timeout):
            raise RunFailed(f"the process of peer {i} did not start within {self._timeout:g} s")
        return self._hear(i, kind)

    def _hear(self, i: int, kind: type[S]) -> S:
        try:
            said = msgspec.msgpack.decode(self._pipes[i].recv_bytes(), type=Said)
        except (EOFError, OSError):
            raise self._ended(i) from None
        if isinstance(said, Failed):
            raise RunFailed(f"peer {i}: {said.why}")
        assert isinstance(said, kind)
        return said

    def _ended(self, i: int) -> RunFailed:
        status = self._nursery.end().get(i, 1)
        how = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        return RunFailed(f"the process of peer {i} ended ({how})")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._nursery.end()
        for pipe in self._pipes:
            pipe.close()
