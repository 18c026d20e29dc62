"""An event loop whose clock jumps to the next timer when there is nothing to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")
TURN = 1e-8


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("every task waits for ever")
        # A turn of the loop takes a little time too: else a sleep of a rounding error never ends.
        self.loop.now += TURN if ready or not timeout else max(timeout, TURN)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is counted, not waited for: an hour of protocol periods takes as long as its computing."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in virtual time."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, mock.patch("time.monotonic", loop.time):
        return runner.run(work)
