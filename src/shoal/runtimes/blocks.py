"""A run split into blocks of peers that take turns: what the split itself must not change.

Each block has its own task, state and context and runs the method by itself. Here they are threads of
one process that meet at their ports, one computing at a time in a given order, so that a test can show
that neither the split nor the order changes a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.core import RunFailed, Work, tree
from shoal.network.port import Buffer

from .base import Plan
from .parts import whole
from .session import Session

__all__ = ["BlockPort", "Meeting", "run_blocks"]


class _Stopped(Exception):
    """Another block failed."""


class Meeting:
    """Where blocks hand over their parcels, one block computing at a time.

    Args:
        order: the blocks' numbers, in the order in which they compute between two meetings.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.changed = threading.Condition()
        self.parcels: dict[tuple[int, int, int], bytearray] = {}
        self.turn = 0
        self.round = 0
        self.error: BaseException | None = None

    def begin(self, block: int) -> None:
        """Wait for this block's turn to compute."""
        with self.changed:
            self._wait(lambda: self.order[self.turn] == block)

    def meet(
        self, block: int, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]
    ) -> dict[int, Buffer]:
        """Hand over parcels and, when every block has, take away one's own."""
        with self.changed:
            now = self.round
            for other, pieces in out.items():
                self.parcels[now, block, other] = bytearray().join(pieces)
            self.turn += 1
            if self.turn == len(self.order):
                self.turn, self.round = 0, self.round + 1
            self.changed.notify_all()
            self._wait(lambda: self.round != now)
            self._wait(lambda: self.order[self.turn] == block)
            missing = [b for b in want if (now, b, block) not in self.parcels]
            if missing:
                raise RunFailed(f"block {block} waits in vain for {missing}: the blocks do not run in step")
            return {b: self.parcels.pop((now, b, block)) for b in want}

    def leave(self, error: BaseException | None) -> None:
        """The block is done."""
        with self.changed:
            self.error = self.error or error
            self.turn = min(self.turn + 1, len(self.order) - 1)
            self.changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        self.changed.wait_for(lambda: self.error is not None or ready())
        if self.error is not None:
            raise _Stopped


class BlockPort:
    """The door of one block to a meeting."""

    def __init__(self, meeting: Meeting, here: int, sizes: Sequence[int], trusted: bool) -> None:
        self.meeting, self.here, self.sizes, self.trusted = meeting, here, sizes, trusted

    def begin(self, tick: int) -> None:
        pass

    def swap(self, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]) -> Mapping[int, Buffer]:
        return self.meeting.meet(self.here, out, want)

    def missed(self) -> Sequence[int]:
        return ()

    def refuse(self, block: int, why: str) -> None:
        raise RunFailed(f"block {block} sent block {self.here} what it cannot use: {why}")


def run_blocks(
    plan: Plan,
    blocks: int,
    order: Sequence[int] | None = None,
    trusted: bool = True,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a plan in blocks of peers that compute one at a time.

    Args:
        plan: the run.
        blocks: how many; ``plan.peers`` of them hold one peer each.
        order: in which they take turns (default 0, 1, 2, ...).
        trusted: whether they deal with each other as one program or as strangers.
        start: a checkpoint of all peers to go on from.

    Returns:
        What all peers together saved at the end: leaves by dotted path.
    """
    n = plan.peers
    count = min(blocks, n)
    sizes = [n // count + (i < n % count) for i in range(count)]
    meeting = Meeting(order if order is not None else range(count))
    parts: list[Any] = [None] * count
    kind: list[type[Work]] = [Work]

    def block(number: int) -> None:
        error: BaseException | None = None
        try:
            meeting.begin(number)
            session = Session.open(plan, BlockPort(meeting, number, sizes, trusted))
            if start is not None:
                session.restore(start)
            session.finish()
            parts[number] = tree.leaves(session.saved())
            kind[0] = type(session.work)
        except _Stopped:
            pass
        except BaseException as raised:
            error = raised
        meeting.leave(error)

    threads = [threading.Thread(target=block, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.error is not None:
        raise meeting.error
    return whole(parts, sizes, kind[0])
