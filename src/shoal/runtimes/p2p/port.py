"""The door of one real peer: the run's thread hands parcels to the network's event loop and waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from shoal.network.port import Buffer

from .desk import Desk

__all__ = ["Loop", "PeerPort"]

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, for programs that are not asynchronous themselves."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="shoal network", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine that runs there. Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function there."""

        async def called() -> Any:
            return function(*args)

        return self.run(called())

    def close(self) -> None:
        """Stop the loop, what still runs in it cancelled."""

        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


class PeerPort:
    """One peer a block, between strangers.

    Args:
        loop: where the desk lives.
        here: this peer's seat.
        n: seats of the run.
        pace: seconds that a tick takes from its beginning to its first exchange, at least.

    Attributes:
        desk: of this peer; to be set before the first tick.
    """

    desk: Desk

    trusted = False

    def __init__(self, loop: Loop, here: int, n: int, pace: float = 0.0) -> None:
        self.loop, self.here, self.pace = loop, here, pace
        self._begun = 0.0
        self.sizes: Sequence[int] = [1] * n
        self.tick, self.call = -1, 0

    def begin(self, tick: int) -> None:
        self.tick, self.call = tick, 0
        self._begun = time.monotonic()
        self.loop.run(self.desk.begin(tick))

    def swap(self, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]) -> Mapping[int, Buffer]:
        call, self.call = self.call, self.call + 1
        if call == 0 and self.pace:
            time.sleep(max(0.0, self._begun + self.pace - time.monotonic()))
        if not out and not want:
            return {}
        return self.loop.run(self.desk.swap(self.tick, call, out, want))

    def missed(self) -> Sequence[int]:
        return self.loop.call(self.desk.missed)

    def refuse(self, block: int, why: str) -> None:
        self.loop.call(self.desk.refuse, block, why)
