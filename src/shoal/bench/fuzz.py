"""Hostile bytes against a live peer: nothing crashes, grows, or changes.

A node with the services of a real peer is attacked by strangers whose keys are good and whose words
are not: valid frames of every kind, mutated (bits, bytes, cuts, repeats, lengths, splices, order), on
streams of greeted connections, on connections in place of a greeting, below the streams, in the frames
that carry them, and on sockets in place of a handshake. An honest peer keeps calling all the while.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from shoal.core import RunFailed
from shoal.runtimes.p2p.blob import Claim, Offer, Whole
from shoal.runtimes.p2p.channel import LENGTH
from shoal.runtimes.p2p.conduct import Standing
from shoal.runtimes.p2p.frames import Refused, Type, encode, pack
from shoal.runtimes.p2p.identity import Identity, verify
from shoal.runtimes.p2p.limits import Limits
from shoal.runtimes.p2p.link import VERSION, Farewell, Greeting, Link, Ping, Pong
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transfer import Receiver
from shoal.runtimes.p2p.transport.base import Connection, Transport, TransportError
from shoal.runtimes.p2p.transport.memory import Hub, Memory
from shoal.runtimes.p2p.transport.mux import MuxConnection
from shoal.runtimes.p2p.transport.outbox import HEAD
from shoal.runtimes.p2p.transport.tcp import Tcp

from .machine import machine
from .mutate import mutate

__all__ = ["fuzz_node"]

PORTION = 120  # frames of one attacker on one connection
PARALLEL = 16  # streams at a time
WARM = 0.2  # of the frames, before memory is looked at
PURPOSE = "fuzz"
STARTS = (Type.CALL, Type.STREAM)
PLACES = {"stream": 10, "frame": 50, "control": 20, "greeting": 15, "handshake": 5}  # of the connections

Install = Callable[[Node], tuple[list[bytes], Callable[[], Any]]]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of the victim's state, good only with its owner's signature."""

    key: str
    value: bytes
    signature: bytes


FRAMES = 100_000
GROWTH = 0.10
"""Of resident memory, as a fraction."""


class Done(msgspec.Struct, frozen=True):
    count: int


def fuzz_node(frames: int, seed: int, *, install: Install | None = None) -> dict[str, Any]:
    """Attack a live node with ``frames`` mutated frames.

    Args:
        frames: how many.
        seed: of the mutations.
        install: adds services to the victim; returns first bytes of streams that they accept (see
            :func:`~shoal.runtimes.p2p.frames.pack`), to be mutated, and a function that describes
            their state.

    Returns:
        ``frames`` (that reached it) and ``places`` (by where), ``refusals`` by reason, ``growth`` of
        resident memory after the first fifth (as a fraction), ``unchanged`` (state, honest peer's
        connection, nothing left in progress), ``errors`` (failures that the node logged),
        ``honest_calls``, ``wall_s``.
    """
    errors = _Errors()
    logger = logging.getLogger("shoal.runtimes.p2p")
    quiet = logging.getLogger("shoal.runtimes.p2p.connections")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    logger.addHandler(errors)
    try:
        return asyncio.run(_fuzz(frames, random.Random(seed), install, errors))
    finally:
        logger.removeHandler(errors)
        quiet.setLevel(level)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < 20:
            self.lines.append(
                f"{record.getMessage()}: {record.exc_info[1]!r}" if record.exc_info else record.msg
            )


async def _fuzz(
    frames: int, draw: random.Random, install: Install | None, errors: _Errors
) -> dict[str, Any]:
    hub, owner, began = Hub(), Identity.create(), time.monotonic()
    # No bans for whoever has a fresh key in a moment; short patience, so that half frames come to an end.
    limits = Limits(strikes=1e9, first_s=0.06, floor_s=0.02, ceiling_s=0.3, connect_s=0.5, grace_s=0.2)
    victim = await _node(owner, limits, await Memory.listen(owner, hub), await Tcp.listen(owner))
    friend = Identity.create()
    honest = await _node(friend, Limits(), await Memory.listen(friend, hub))
    handshake = await _record_handshake()
    honest.learn(victim.id, victim.addresses())
    state: dict[str, bytes] = {"one": b"1"}
    samples, describe = _serve(victim, owner, state), lambda: dict(state)
    more, describe_more = install(victim) if install else ([], lambda: None)
    samples += more

    await _honest_call(honest, victim)
    before = (describe(), describe_more())
    link = honest._current[victim.id]
    places: Counter[str] = Counter()
    baseline = calls = sent = 0
    while sent < frames:
        for place, count in (await _attack(hub, victim, draw, samples, handshake)).items():
            places[place] += count
        sent = sum(places.values())
        calls += 1
        await _honest_call(honest, victim)
        if not baseline and sent >= WARM * frames:
            baseline = await _memory(victim, honest)
    grown = await _memory(victim, honest) / baseline - 1
    idle = not any(link.active for link in victim._links) and len(victim._links) == 1
    unchanged = before == (describe(), describe_more()) and honest._current.get(victim.id) is link and idle
    reasons: Counter[str] = Counter()
    for (_, reason), count in victim.refusals.items():
        reasons[reason] += count
    await asyncio.gather(victim.stop(), honest.stop())
    return {
        "frames": sent,
        "places": dict(places),
        "refusals": dict(reasons.most_common()),
        "growth": round(grown, 4),
        "unchanged": unchanged,
        "errors": errors.lines,
        "honest_calls": calls,
        "wall_s": round(time.monotonic() - began, 1),
    }


async def _node(identity: Identity, limits: Limits, *transports: Transport) -> Node:
    node = Node(identity, transports, limits=limits)
    await node.start()
    return node


def _serve(node: Node, owner: Identity, state: dict[str, bytes]) -> list[bytes]:
    """The victim's services, and valid beginnings of streams for each."""

    async def set_entry(peer: str, entry: Entry) -> Done:
        if not verify(owner.id, PURPOSE, entry.key.encode() + b"\0" + entry.value, entry.signature):
            raise Refused("bad signature")
        state[entry.key] = entry.value
        return Done(len(state))

    async def count(peer: str, entry: Done) -> Done:
        return Done(len(state))

    async def blob(peer: str, key: bytes, content: memoryview) -> None:
        raise Refused("no blobs")

    node.serve("set", Entry, set_entry)
    node.serve("count", Done, count)
    Receiver(node, lambda peer, key, size: True, 1 << 20, blob)
    # The signature is of another value, so that even an unmutated frame changes nothing.
    entry = Entry("one", b"x" * 700, owner.sign(PURPOSE, b"one\0other"))

    def message(body: Any) -> bytes:
        data = encode(body)
        return LENGTH.pack(len(data)) + data

    def call(kind: bytes, body: Any) -> bytes:
        return pack(Type.CALL, encode(body), kind=kind, time=200)

    stream = pack(Type.STREAM, kind=b"blob")
    offered = stream + message(Offer(b"k", 3000)) + bytes(3000) + message(Claim(bytes(16)))
    return [
        call(b"set", entry),
        call(b"set", Entry("two", bytes(range(64)), bytes(64))),
        call(b"count", Done(3)),
        call(b"blob/small", Whole(b"key", b"data" * 300)),
        call(b"nothing", Done(1)),
        offered,
        stream + message(Offer(b"k2", 1 << 19)),
        pack(Type.REPLY, encode(Done(1))),
        *(
            _control(said)
            for said in (Ping(3), Pong(3), Farewell(), Greeting(bytes(8), bytes(8), bytes(8)))
        ),
    ]


def _control(said: Any) -> bytes:
    return pack(Type.CONTROL, encode(said), code=VERSION)


async def _honest_call(honest: Node, victim: Node) -> None:
    async with asyncio.timeout(30):
        reply = await honest.call(victim.id, "count", Done(0), Done, deadline=20)
    if reply.count < 1:
        raise RunFailed("the victim lost its state")


async def _attack(
    hub: Hub, victim: Node, draw: random.Random, samples: list[bytes], handshake: bytes
) -> Counter[str]:
    """One attacker with a fresh key; how many of its frames reached the victim, by place."""
    identity = Identity.create()
    transport = await Memory.listen(identity, hub)
    reached: Counter[str] = Counter()
    try:
        for place in draw.choices(list(PLACES), list(PLACES.values()), k=8):
            if place == "handshake":
                reached[place] += await _instead_of_handshake(victim, draw, handshake)
                continue
            connection = await transport.dial(victim.id, victim.addresses())
            if place == "greeting":
                reached[place] += await _instead_of_greeting(connection, draw, samples)
            elif place == "frame":
                reached[place] += await _below(connection, draw, samples)
            elif place == "control":
                reached[place] += await _on_control(connection, draw, samples)
            else:
                reached[place] += await _on_streams(connection, draw, samples, PORTION)
            with suppress(TransportError):
                await connection.close()
            async with asyncio.timeout(30):
                while any(link.peer == identity.id for link in victim._links):
                    await asyncio.sleep(0.002)
    finally:
        await transport.close()
    return reached


async def _greet(connection: Connection) -> Link | None:
    link = Link(connection, Standing(Limits()), Limits())
    try:
        async with asyncio.timeout(5):
            await link.greet(bytes(8), bytes(8))
    except (TransportError, TimeoutError):
        return None  # the connection before it has not quite gone yet
    return link


async def _on_streams(connection: Connection, draw: random.Random, samples: list[bytes], count: int) -> int:
    if await _greet(connection) is None:
        return 0
    room, reached = asyncio.Semaphore(PARALLEL), 0

    async def one(frame: bytes, ending: float) -> None:
        nonlocal reached
        async with room:
            with suppress(TransportError, TimeoutError):
                async with asyncio.timeout(2):
                    stream = await connection.open()
                    await stream.write(frame)
                    if ending < 0.9:
                        await stream.finish()
                    elif ending < 0.98:  # given up in the middle
                        await _turns()
                        stream.abort()
                    reached += connection.alive
                    while await stream.read():  # where it was not finished, until the victim loses patience
                        pass
                    stream.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            usual = samples if draw.random() < 0.1 else [s for s in samples if s[0] in STARTS]
            frame = mutate(draw.choice(usual), draw, samples)
            group.create_task(one(frame, draw.random()))
    return reached


async def _instead_of_greeting(connection: Connection, draw: random.Random, samples: list[bytes]) -> int:
    with suppress(TransportError, TimeoutError):
        async with asyncio.timeout(1):
            stream = await connection.open()
            await stream.write(mutate(draw.choice(samples), draw, samples))
            await stream.finish()
            await _turns()
            return 1
    return 0


async def _on_control(connection: Connection, draw: random.Random, samples: list[bytes]) -> int:
    link = await _greet(connection)
    stream = link._stream if link else None
    reached = 0
    while stream is not None and connection.alive and reached < PORTION:
        frame = draw.choice([s for s in samples if s[0] == Type.CONTROL])
        if draw.random() < 0.8:
            frame = mutate(frame, draw, samples)
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(1):
                await stream.write(frame)
                reached += 1
                await _turns()
    return reached


async def _below(connection: Connection, draw: random.Random, samples: list[bytes]) -> int:
    """Mutated frames of the multiplexer itself, as somebody sends who has left its rules behind."""
    assert isinstance(connection, MuxConnection)
    if await _greet(connection) is None:
        return 0
    reached = 0
    while connection.alive and reached < PORTION:
        body = draw.choice(samples)[:100]
        head = HEAD.pack(draw.randrange(8), 2 * reached + 3, len(body))
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(1):
                await connection.pipe.write(memoryview(mutate(head + body, draw, samples)))
                reached += 1
                await _turns()
    return reached


async def _instead_of_handshake(victim: Node, draw: random.Random, handshake: bytes) -> int:
    address = next(a for a in victim.addresses() if a.startswith("tcp://"))
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(mutate(handshake, draw, [handshake]))
                writer.write_eof()
                await reader.read()
            finally:
                writer.close()
            return 1
    return 0


async def _record_handshake() -> bytes:
    """What a dialler says first."""
    first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.set_result(await reader.read(1 << 16))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialler = await Tcp.listen(Identity.create())
    with suppress(TransportError):
        await dialler.dial(Identity.create().id, [f"tcp://127.0.0.1:{port}"])
    await dialler.close()
    server.close()
    return await first


async def _turns() -> None:
    """Let the other end take in what was written."""
    for _ in range(6):
        await asyncio.sleep(0)


async def _memory(*nodes: Node) -> int:
    """Resident bytes once the strangers have gone."""
    async with asyncio.timeout(30):
        while any(len(node._links) > 1 for node in nodes):
            await asyncio.sleep(0.01)
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RunFailed("/proc/self/status has no VmRSS")


def suite(threads: int, console: Any) -> dict[str, Any]:
    """100,000 mutated frames against a live peer: no failure, no growth, no change of state."""
    from .live_peer import live_peer

    found: dict[str, Any] = {
        "target": "a live peer: node, membership, desk and exchange (strangers hold a seat), blobs, stores",
        "seed": 0,
        "machine": machine(),
    }
    found |= fuzz_node(FRAMES, 0, install=live_peer)
    holds = found["frames"] >= FRAMES and found["growth"] <= GROWTH
    holds = holds and bool(found["unchanged"]) and not found["errors"]
    if console is not None:
        for name in ("frames", "growth", "unchanged", "errors", "honest_calls", "wall_s"):
            console.print(f"{name}: {found[name]}", highlight=False)
        console.print("holds" if holds else "DOES NOT HOLD")
    return found | {"holds": holds}
