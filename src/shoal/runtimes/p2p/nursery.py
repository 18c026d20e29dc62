"""Where peers' processes come from: one process loads a run, and forks a copy of itself for every peer.

Loading torch, the parts and the data takes seconds, forking does not. The process runs one thread and
no event loop, so that a copy of it is sound; it does what its parent says over one socket, and when the
parent is gone, however it went, it ends its children and itself. Its parent's main module is not
imported, so that a script needs no ``if __name__ == "__main__"`` to run peers.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import msgspec
import torch

from shoal.core import RunFailed, ShoalError
from shoal.network.port import Alone
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .identity import Identity
from .worker import Job, work

__all__ = ["ENVIRONMENT", "Nursery"]

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Of a process that is one peer: one thread, which also makes a copy of it sound."""


class _Load(msgspec.Struct, frozen=True, tag=True):
    """Load this; answered by ``_Loaded``."""

    job: Job


class _Loaded(msgspec.Struct, frozen=True, tag=True):
    fault: str


class _Bear(msgspec.Struct, frozen=True, tag=True):
    """Fork a peer for each seat below ``count``; as many pipes follow. Answered by ``_Born``."""

    count: int


class _Born(msgspec.Struct, frozen=True, tag=True):
    pids: list[int]


class _End(msgspec.Struct, frozen=True, tag=True):
    """End the processes that are left; answered by ``_Ended``."""


class _Ended(msgspec.Struct, frozen=True, tag=True):
    """Exit statuses of the peers since they were born, by seat; killed by signal N: -N."""

    statuses: dict[int, int]


class Nursery:
    """The parent's end. A context manager: at its end no process is left.

    It is made at once and loads its libraries beside whatever its parent does next.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p or str(os.getcwd()) for p in sys.path)  # noqa: PTH109
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, **ENVIRONMENT},
            start_new_session=True,  # what Ctrl-C means is for the parent to say
        )
        theirs.close()
        self._control = Connection(ours.detach())

    def load(self, job: Job) -> None:
        """Be ready to fork this run's peers.

        Raises:
            RunFailed: it cannot be loaded there.
        """
        fault = self._ask(_Load(job), _Loaded).fault
        if fault:
            raise RunFailed(f"the peers cannot be started: {fault}")

    def bear(self, count: int) -> tuple[list[int], list[Connection]]:
        """Fork the peers of the seats below ``count``: their process ids and pipes to them."""
        pairs = [socket.socketpair() for _ in range(count)]
        try:
            self._say(_Bear(count))
            for _, theirs in pairs:
                send_handle(self._control, theirs.fileno(), self._process.pid)
            pids = self._hear(_Born).pids
        finally:
            for _, theirs in pairs:
                theirs.close()
        return pids, [Connection(ours.detach()) for ours, _ in pairs]

    def end(self) -> dict[int, int]:
        """End the peers that are left; the exit statuses of those that had gone before, by seat."""
        return self._ask(_End(), _Ended).statuses

    def _ask(self, what: Any, kind: Any) -> Any:
        self._say(what)
        return self._hear(kind)

    def _say(self, what: Any) -> None:
        try:
            self._control.send_bytes(msgspec.msgpack.encode(what))
        except OSError:
            raise RunFailed("the process that starts the peers is gone") from None

    def _hear(self, kind: Any) -> Any:
        try:
            return msgspec.msgpack.decode(self._control.recv_bytes(), type=kind)
        except (EOFError, OSError):
            raise RunFailed("the process that starts the peers is gone") from None

    def close(self) -> None:
        """End every process."""
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Keeper:
    """The process's own end."""

    def __init__(self, control: Connection) -> None:
        self.control = control
        self.children: dict[int, int] = {}  # process id -> seat
        self.statuses: dict[int, int] = {}
        self.job: Job
        self.plan: Plan

    def serve(self) -> None:
        """Until the parent has gone."""
        try:
            while True:
                order = msgspec.msgpack.decode(self.control.recv_bytes(), type=_Load | _Bear | _End)
                if isinstance(order, _Load):
                    self.answer(_Loaded(self.load(order.job)))
                elif isinstance(order, _Bear):
                    self.answer(_Born(self.bear(order.count)))
                else:
                    self.answer(_Ended(self.end()))
        except (EOFError, OSError):
            self.end()

    def answer(self, said: Any) -> None:
        self.control.send_bytes(msgspec.msgpack.encode(said))

    def load(self, job: Job) -> str:
        for name in job.modules:
            importlib.import_module(name)
        importlib.import_module(f"{__package__}.transport.{job.transport}")
        Identity.create()
        try:
            self.job, self.plan = job, job.open()
            # Whatever opening a seat loads and keeps (data, libraries) is there for all of them.
            alone = Alone(self.plan.peers)
            alone.sizes = [1] * self.plan.peers
            Session.open(self.plan, alone)
        except ShoalError as error:
            return str(error)
        gc.freeze()  # what is there now is not touched by the children's collections
        return ""

    def bear(self, count: int) -> list[int]:
        pipes = [recv_handle(self.control) for _ in range(count)]
        self.statuses.clear()
        pids = []
        for seat, handle in enumerate(pipes):
            pid = os.fork()
            if not pid:
                self.be(seat, handle, pipes)
            pids.append(pid)
            self.children[pid] = seat
        for handle in pipes:
            os.close(handle)
        return pids

    def be(self, seat: int, handle: int, pipes: Sequence[int]) -> None:
        """What the copy does."""
        status = 1
        try:
            self.control.close()
            for other in pipes:
                if other != handle:  # a pipe ends where its only holder does
                    os.close(other)
            status = work(self.job, self.plan, seat, Connection(handle))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def end(self) -> dict[int, int]:
        grace = time.monotonic() + 0.2
        while self.children:
            for pid in list(self.children):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[self.children.pop(pid)] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > grace:
                    os.kill(pid, signal.SIGKILL)
            if self.children:
                time.sleep(0.002)
        return self.statuses


def main() -> None:
    """The process."""
    torch.set_num_threads(1)
    _Keeper(Connection(int(sys.argv[1]))).serve()
    os._exit(0)  # nothing is left to be tidied, and torch takes a while to do it


if __name__ == "__main__":
    main()
