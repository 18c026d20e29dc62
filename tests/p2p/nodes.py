"""Nodes under test, over the transports that the common tests run over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from transports import WAYS, World

from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.limits import Limits
from shoal.runtimes.p2p.node import Node


class Text(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class Number(msgspec.Struct, forbid_unknown_fields=True):
    value: int


async def echo(peer: str, message: Text) -> Text:
    return message


def run(test: Callable[[], Coroutine[Any, Any, None]], limit: float = 20.0) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(limit):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def nodes(way: str, count: int = 2, *, meet: bool = True, **limits: Any) -> AsyncIterator[list[Node]]:
    """Started nodes that know each other's addresses and echo, in the order of their ids."""
    world, made = World(), []
    for identity in sorted((Identity.create() for _ in range(count)), key=lambda i: i.id):
        node = Node(identity, [await WAYS[way].listen(world, identity)], limits=Limits(**limits))
        node.serve("echo", Text, echo)
        await node.start()
        made.append(node)
    if meet:
        for node in made:
            for other in made:
                node.learn(other.id, other.addresses())
    try:
        yield made
    finally:
        await asyncio.gather(*(node.stop() for node in made))
