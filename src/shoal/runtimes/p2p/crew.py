"""Real peers as processes of this machine, for demonstrations, measurements and tests.

Each is what ``shoal peer run`` is, with its own state and data folders, and may be killed, paused and
started again. They are forked from one process that has imported everything and has no thread
(``python -m shoal.runtimes.p2p.crew``), so that eight of them load torch once. That process reads one
JSON object a line and answers each; when its standard input ends, it kills what it has started.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.core import RunFailed

from .state_folder import StateFolder

__all__ = ["Crew", "Hand"]

NETWORK = 0x40000000  # CLONE_NEWNET
_PARTS = ("attacks", "clocks", "codecs", "methods", "rules", "tasks", "topologies")


@dataclass
class Hand:
    """One peer: where it lives and how it is started.

    Args:
        state: its folder.
        plan: the run, as plain data.
        options: fields of :class:`~.options.PeerOptions`; ``join`` as texts, ``patience`` as fields.
        space: network namespace to live in, or "".
        skew: seconds that its wall clock is off.

    Attributes:
        pid: of its process; 0 before it is started.
    """

    state: Path
    plan: Mapping[str, Any]
    options: Mapping[str, Any]
    space: str = ""
    skew: float = 0.0
    pid: int = 0

    @property
    def status(self) -> dict[str, Any]:
        """What it last said of itself; {} before it did."""
        return StateFolder(self.state).read("status")

    def rows(self) -> list[dict[str, Any]]:
        """What it has measured."""
        path = self.state / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Crew:
    """A context manager: at its end no process is left."""

    def __init__(self) -> None:
        self.hands: list[Hand] = []
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **threads},
            start_new_session=True,
        )

    def start(self, hand: Hand) -> None:
        """Start a peer, or start it again."""
        if not (hand.state / "identity.key").exists():
            StateFolder(hand.state).create(hand.state.name)
        order = {
            "state": str(hand.state), "plan": dict(hand.plan), "options": dict(hand.options),
            "space": hand.space, "skew": hand.skew,
        }  # fmt: skip
        hand.pid = int(self._ask({"start": order})["pid"])
        if hand not in self.hands:
            self.hands.append(hand)

    def signal(self, hand: Hand, number: int) -> None:
        """Send its process a signal."""
        with suppress(ProcessLookupError):
            os.kill(hand.pid, number)

    def kill(self, hand: Hand) -> None:
        """End it at once, and see it gone."""
        self.signal(hand, signal.SIGKILL)
        self.join(hand, 10)

    def ended(self, hand: Hand) -> int | None:
        """The exit status of its process (killed by signal N: -N); None while it runs."""
        told = self._ask({"ended": hand.pid})["status"]
        return None if told is None else int(told)

    def join(self, hand: Hand, seconds: float) -> int:
        """Wait until its process has ended; its exit status.

        Raises:
            RunFailed: it did not end in time.
        """
        until = time.monotonic() + seconds
        while (status := self.ended(hand)) is None:
            if time.monotonic() > until:
                raise RunFailed(f"{hand.state.name} did not end: {hand.status.get('state')}")
            time.sleep(0.05)
        return status

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until a condition holds.

        Raises:
            RunFailed: it does not, in time.
        """
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                told = ", ".join(
                    f"{h.state.name}: {h.status.get('state')} {h.status.get('tick')}" for h in self.hands
                )
                raise RunFailed(f"no {what} within {seconds:g} s ({told})")
            time.sleep(0.05)

    def ticket(self, hand: Hand) -> str:
        """An invitation to the run that a started peer is in, as soon as it can give one."""
        from .ticket import Ticket

        self.wait(lambda: bool(hand.status.get("addresses")), 30, f"address of {hand.state.name}")
        told = hand.status
        return str(Ticket(told["peer"], tuple(told["addresses"]), told["run"]))

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = self._nursery.stdin, self._nursery.stdout
        assert ours is not None
        assert theirs is not None
        try:
            ours.write(json.dumps(order) + "\n")
            answer = theirs.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RunFailed("the process that starts the peers is gone")
        return dict(json.loads(answer))

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        with suppress(OSError):
            self._nursery.stdin.close()
        try:
            self._nursery.wait(10)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        self._nursery.stdout.close()


def _be(order: dict[str, Any], parent: int) -> int:
    """What a forked process does: be a peer. Returns its exit status."""
    if order["space"]:
        _enter(order["space"])
    if order["skew"]:
        _skew(order["skew"])
    from shoal.runtimes.base import Plan

    from .desk import Patience
    from .options import PeerOptions
    from .peer import Peer
    from .ticket import parse

    options = dict(order["options"])
    options["join"] = [parse(text) for text in options.get("join", [])]
    options["patience"] = Patience(**options.get("patience", {}))
    if options.get("allow") is not None:
        options["allow"] = frozenset(options["allow"])
    peer = Peer(StateFolder(order["state"]), Plan(**order["plan"]), PeerOptions(**options))
    signal.signal(signal.SIGTERM, lambda *_: peer.stop())

    def orphaned() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=orphaned, daemon=True).start()
    return 0 if peer.run()["state"] == "done" else 1


def _enter(space: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", space).open() as file:
        if libc.setns(file.fileno(), NETWORK):
            raise OSError(ctypes.get_errno(), f"network namespace {space}")


def _skew(seconds: float) -> None:
    """Put the wall clock, as this process reads it, off by so much."""
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)


def _fork(order: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        errors = os.open(Path(order["state"]) / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream, target in ((0, nowhere), (1, nowhere), (2, errors)):
            os.dup2(target, stream)
        status = _be(order, parent)
    except BaseException:  # the child must not go on as a second nursery
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def main() -> None:
    """Serve until standard input ends."""
    import torch

    import shoal.core
    import shoal.runtimes.p2p.peer

    torch.set_num_threads(1)
    for name in _PARTS:
        getattr(shoal.core, name).classes()
    ended: dict[int, int] = {}
    running: set[int] = set()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "start" in order:
                pid = _fork(order["start"])
                running.add(pid)
                told: dict[str, Any] = {"pid": pid}
            else:
                pid = order["ended"]
                if pid in running:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        ended[pid] = os.waitstatus_to_exitcode(status)
                        running.discard(pid)
                told = {"status": ended.get(pid)}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
    finally:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
