"""A peer's present state for one that comes late, and the way to get one's own from others.

What three peers hand out is compared and the one nearest to the other two is taken, so that one liar
among them is not believed. Raises of what is sent are the sender's affair: nothing here ends a run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import ShoalError, tree

from .frames import Refused
from .node import Node
from .transfer import Receiver, send_blob
from .transport.base import PeerId

__all__ = ["Copies"]

T = TypeVar("T")

ASKED = 5  # peers asked how far they are
COMPARED = 3  # states fetched
CALL_S = 3.0
FETCH_S = 60.0


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks how far a peer is."""


class Here(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ticks done; -1: it has not begun."""

    done: Annotated[int, Meta(ge=-1, lt=2**31)]


class Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for a peer's present state, which then comes as a blob."""


class Coming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It will come as soon as the present tick is over."""


class Copies:
    """Hands out states and fetches them.

    Args:
        node: of this peer.
        limit: bytes of a state.
        done: this peer's ticks done, -1 before it has begun.
        entitled: whether a peer takes part in the run.
    """

    def __init__(
        self, node: Node, limit: int, done: Callable[[], int], entitled: Callable[[PeerId], bool]
    ) -> None:
        self.node, self._done, self._entitled = node, done, entitled
        self._asked: set[PeerId] = set()
        self._handing: set[asyncio.Task[int]] = set()
        self._wanted: dict[PeerId, asyncio.Future[bytes]] = {}
        node.serve("run/where", Where, self._on_where)
        node.serve("run/fetch", Fetch, self._on_fetch)
        Receiver(node, lambda peer, *_: peer in self._wanted, limit, self._on_state, kind="state")

    # -- handing out ---------------------------------------------------------------------------------

    @property
    def asked(self) -> bool:
        """Whether somebody waits for this peer's state."""
        return bool(self._asked)

    async def hand_out(self, state: bytes) -> None:
        """Send the state to everyone who has asked."""
        asked, self._asked = self._asked, set()
        for peer in asked:
            key = b"state" + os.urandom(12)
            task = asyncio.create_task(send_blob(self.node, peer, key, [state], kind="state"))
            self._handing.add(task)
            task.add_done_callback(self._handed)

    def _handed(self, task: asyncio.Task[int]) -> None:
        self._handing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked and has gone again is no fault here

    async def flush(self, seconds: float) -> None:
        """Let what is on its way arrive, for at most so long."""
        if self._handing:
            await asyncio.wait(self._handing, timeout=seconds)

    async def _on_where(self, peer: PeerId, _: Where) -> Here:
        return Here(self._done())

    async def _on_fetch(self, peer: PeerId, _: Fetch) -> Coming:
        if self._done() < 1 or not self._entitled(peer):
            raise Refused("nothing to fetch", 0.0)
        self._asked.add(peer)
        return Coming()

    # -- fetching ------------------------------------------------------------------------------------

    async def where(self, seats: Mapping[int, PeerId]) -> dict[int, int]:
        """Ticks that the holders of some of these seats have done, those that have begun and answer."""
        some = list(seats.items())[:ASKED]
        calls = [self.node.call(p, "run/where", Where(), Here, deadline=CALL_S) for _, p in some]
        told = await _most(calls)
        pairs = zip(some, told, strict=True)
        return {seat: t.done for (seat, _), t in pairs if isinstance(t, Here) and t.done >= 0}

    async def fetch(self, peers: Iterable[PeerId], like: Any) -> tuple[Any, int] | None:
        """A state of the form of ``like`` and the ticks that it has done; None: nobody gave one."""
        some = list(peers)[:COMPARED]
        told = await _most([self._fetch(p) for p in some])
        found = []
        for data in told:
            if isinstance(data, bytes):
                try:
                    found.append(_read(data, like))
                except (ShoalError, ValueError):
                    continue  # the others may do
        return found[_middle([state for state, _ in found])] if found else None

    async def _fetch(self, peer: PeerId) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wanted[peer] = future
        try:
            async with asyncio.timeout(FETCH_S):
                await self.node.call(peer, "run/fetch", Fetch(), Coming, deadline=CALL_S)
                return await future
        finally:
            del self._wanted[peer]

    async def _on_state(self, peer: PeerId, key: bytes, data: memoryview) -> None:
        future = self._wanted.get(peer)
        if future is None or future.done():
            raise Refused("not asked for", 0.0)
        future.set_result(bytes(data))


async def _most(work: Sequence[Coroutine[Any, Any, T]]) -> list[T | BaseException | None]:
    """What came of each. Once most are through, the others get as much time again: one that is slow
    holds nobody up."""
    tasks = [asyncio.create_task(each) for each in work]
    if not tasks:
        return []
    began = time.monotonic()
    try:
        for count, each in enumerate(asyncio.as_completed(tasks), 1):
            with suppress(ShoalError, TimeoutError):
                await each
            if 2 * count > len(tasks):
                break
        await asyncio.wait(tasks, timeout=time.monotonic() - began)
        return [(t.exception() or t.result()) if t.done() else None for t in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read(data: bytes, like: Any) -> tuple[Any, int]:
    """A fetched state and its ticks done.

    Raises:
        BadInput, ValueError: it could not be this peer's own.
    """
    values = tree.loads(data)
    state, done = tree.load(like, values, "method"), values.get("run.done")
    if not isinstance(done, int) or not 0 < done < 2**31:
        raise ValueError("no number of ticks")
    theirs = tree.leaves(state)
    for name, leaf in tree.leaves(like).items():
        value = theirs[name]
        if isinstance(leaf, Tensor):
            if not isinstance(value, Tensor) or value.dtype != leaf.dtype or value.shape != leaf.shape:
                raise ValueError(f"{name} is of another form")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} is not finite")
        elif type(value) is not type(leaf):
            raise ValueError(f"{name} is of another form")
    return state, done


def _middle(states: list[Any]) -> int:
    """The one whose numbers are nearest to those of the others, the first of equals."""
    if len(states) < 3:
        return 0
    rows = [
        torch.cat([v.double().flatten() for v in tree.leaves(s).values() if isinstance(v, Tensor)])
        for s in states
    ]
    stack = torch.stack(rows)
    return int(torch.cdist(stack, stack).sum(1).argmin())
