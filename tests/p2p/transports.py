"""The transports that the common tests run over. Another one joins with ``WAYS["name"] = Way(...)``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.transport.base import Connection, Stream, Transport
from shoal.runtimes.p2p.transport.memory import Hub, Memory
from shoal.runtimes.p2p.transport.mux import MuxConnection
from shoal.runtimes.p2p.transport.tcp import Tcp


@dataclass
class World:
    """What the transports of one test share."""

    hub: Hub = field(default_factory=Hub)


@dataclass(frozen=True)
class Way:
    """One transport under test.

    Attributes:
        listen: a listening transport for an identity.
        cut: break a connection without a word to the other end, as a pulled cable would.
        held: bytes that a writer may get rid of while its reader stands still.
        nowhere: an address at which nobody answers.
    """

    listen: Callable[[World, Identity], Awaitable[Transport]]
    cut: Callable[[Connection], None]
    held: int
    nowhere: str


async def memory(world: World, identity: Identity) -> Transport:
    return await Memory.listen(identity, world.hub)


async def tcp(world: World, identity: Identity) -> Transport:
    return await Tcp.listen(identity)


def cut_pipe(connection: Connection) -> None:
    assert isinstance(connection, MuxConnection)
    connection.pipe.close()


WAYS: dict[str, Way] = {
    "memory": Way(memory, cut_pipe, 1 << 17, "memory://nobody"),
    "tcp": Way(tcp, cut_pipe, 1 << 17, "tcp://127.0.0.1:1"),
}


@asynccontextmanager
async def two(way: Way) -> AsyncIterator[tuple[Transport, Transport]]:
    """Two listening transports of new identities, closed at the end."""
    world = World()
    one = await way.listen(world, Identity.create())
    other = await way.listen(world, Identity.create())
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


@asynccontextmanager
async def pair(way: Way) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two ends of one connection: who dialled, and who was dialled."""
    async with two(way) as (one, other):
        dialled = await one.dial(other.id, other.addresses())
        yield dialled, await other.accept()


async def drain(stream: Stream) -> bytes:
    """All until the other side finishes."""
    parts = []
    while part := await stream.read():
        parts.append(part)
    return b"".join(parts)


def run(test: Coroutine[Any, Any, None], seconds: float = 20) -> None:
    """Run it in a bounded time; a task that dies of what nobody awaits fails it."""
    troubles: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())
    assert not troubles
