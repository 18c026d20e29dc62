"""The one door: calls, streams, refusals, and which connection stays."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc

import msgspec
import pytest
from nodes import Number, Text, nodes, run, until
from transports import WAYS, World

from shoal.core import BadInput
from shoal.runtimes.p2p.channel import Channel
from shoal.runtimes.p2p.conduct import Standing
from shoal.runtimes.p2p.frames import (
    BadReply,
    CallRefused,
    Code,
    Late,
    Malformed,
    Refused,
    Type,
    encode,
    pack,
    read_head,
    squeeze,
    unsqueeze,
)
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.limits import Limits
from shoal.runtimes.p2p.link import VERSION, Greeting, Link
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transport.base import Broken, Unreachable

each_way = pytest.mark.parametrize("way", sorted(WAYS))


@each_way
def test_calls_share_one_connection_in_both_directions(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            seen: list[tuple[str, bool]] = []
            a.on_connection(lambda peer, up: seen.append((peer, up)))
            replies = await asyncio.gather(*(a.call(b.id, "echo", Text(str(i)), Text) for i in range(200)))
            assert [reply.text for reply in replies] == [str(i) for i in range(200)]
            assert (await b.call(a.id, "echo", Text("back"), Text)).text == "back"
            assert len(a._links) == len(b._links) == 1
            assert a.connections().keys() == {b.id}
            assert a.connections()[b.id].path == "direct"
            await until(lambda: b.round_trip(a.id) is not None)
            smooth, deviation = a.round_trip(b.id) or (-1, -1)
            assert 0 < smooth < 5 and deviation >= 0
            assert seen == [(b.id, True)] and not a.refusals and not b.refusals

    run(check)


@each_way
def test_large_bodies_pass_within_limits(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            b.serve("big", Text, lambda peer, message: _reply(message), limit=1 << 22)
            text = "".join(chr(32 + i * i % 90) for i in range(1 << 20)) * 3
            assert (await a.call(b.id, "big", Text(text), Text, limit=1 << 22)).text == text
            with pytest.raises(BadReply, match="too large"):
                await a.call(b.id, "big", Text(text), Text, limit=1 << 20)
            with pytest.raises(CallRefused) as caught:
                await a.call(b.id, "echo", Text(text), Text)
            assert caught.value.code == Code.TOO_LARGE
            assert b.refusals[a.id, "too large"] == 1

    run(check)


async def _reply(message: Text) -> Text:
    return message


@each_way
@pytest.mark.parametrize("slow", [False, True])
def test_dialling_at_once_ends_with_the_smaller_ones_connection(way: str, slow: bool) -> None:
    async def check() -> None:
        async with nodes(way, 4) as peers:
            for node in peers:
                node.serve("slow", Number, _slow)
                if slow:
                    dial = node.dialler

                    wait = 0.03 * peers.index(node)

                    async def late(peer, addresses, dial=dial, wait=wait):
                        connection = await dial(peer, addresses)
                        await asyncio.sleep(wait)
                        return connection

                    node.dialler = late
            calls = [
                one.call(other.id, "slow", Number(i), Number)
                for i in range(3)
                for one in peers
                for other in peers
                if one is not other
            ]
            answers = await asyncio.gather(*calls)  # not one is lost, whichever connection it was on
            assert [answer.value for answer in answers] == [i for i in range(3) for _ in range(12)]
            await until(lambda: all(len(node._links) == 3 for node in peers))
            for node in peers:
                for other, link in node._current.items():
                    assert link.usable and link.connection.dialled == (node.id < other)
            for one in peers:
                for other in peers:
                    if one is not other:
                        await one.call(other.id, "echo", Text("still"), Text)
            assert not any(node.refusals for node in peers)

    run(check)


async def _slow(peer: str, message: Number) -> Number:
    await asyncio.sleep(0.1)
    return message


@each_way
def test_a_broken_connection_is_made_again(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            began = asyncio.Event()
            served = []

            async def wait(peer: str, message: Number) -> Number:
                served.append(message.value)
                began.set()
                if len(served) == 1:
                    await asyncio.sleep(10)
                return message

            b.serve("wait", Number, wait)
            seen: list[bool] = []
            a.on_connection(lambda peer, up: seen.append(up))
            call = asyncio.create_task(a.call(b.id, "wait", Number(1), Number))
            again = asyncio.create_task(a.call(b.id, "wait", Number(2), Number, idempotent=True))
            await began.wait()
            await until(lambda: len(served) == 2)
            WAYS[way].cut(a._current[b.id].connection)
            with pytest.raises(Broken):  # it may have been acted on, so it is not repeated unasked
                await call
            assert (await again).value == 2
            assert (await a.call(b.id, "echo", Text("again"), Text)).text == "again"
            assert seen == [True, False, True]

    run(check)


@each_way
def test_a_peer_that_comes_back_in_a_new_life_is_taken(way: str) -> None:
    async def check() -> None:
        world = World()
        first, second = sorted((Identity.create() for _ in range(2)), key=lambda i: i.id)
        a = Node(first, [await WAYS[way].listen(world, first)])
        await a.start()

        async def born(text: str) -> Node:
            # On a hub of its own, since the old one is not known to have gone.
            other = World() if way != "memory" else world
            transport = (
                await WAYS[way].listen(other, second)
                if way != "memory"
                else type(a.transports[0])(second, world.hub, text)
            )
            node = Node(second, [transport])
            node.serve("who", Text, lambda peer, message: _reply(Text(text)))
            node.learn(a.id, a.addresses())
            await node.start()
            return node

        a.serve("echo", Text, lambda peer, message: _reply(message))
        old = await born("old")
        a.learn(old.id, old.addresses())
        assert (await a.call(old.id, "who", Text(""), Text)).text == "old"
        assert a._current[old.id].connection.dialled  # by rule the one that stays, but for the new life
        new = await born("new")
        assert (await new.call(a.id, "echo", Text("hello"), Text)).text == "hello"
        assert (await a.call(new.id, "who", Text(""), Text)).text == "new"
        await asyncio.gather(a.stop(), old.stop(), new.stop())

    run(check)


@each_way
def test_failures_are_typed_and_say_no_more_than_they_must(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(peer: str, message: Text) -> Text:
        raise ValueError("the path is /secret")

    async def refuse(peer: str, message: Text) -> Text:
        raise Refused("not signed")

    async def check() -> None:
        async with nodes(way) as (a, b):
            b.serve("fail", Text, fail)
            b.serve("refuse", Text, refuse)
            b.serve("number", Number, lambda peer, message: _reply(Text("no number")))
            cases = [
                ("fail", Text("x"), Code.FAILED, ""),
                ("refuse", Text("x"), Code.REFUSED, "not signed"),
                ("nothing", Text("x"), Code.UNKNOWN, ""),
                ("echo", Number(3), Code.MALFORMED, "malformed body"),
            ]
            for kind, message, code, reason in cases:
                with pytest.raises(CallRefused) as caught:
                    await a.call(b.id, kind, message, Text)
                assert (caught.value.code, caught.value.reason) == (code, reason)
                assert "secret" not in str(caught.value)
            with pytest.raises(BadReply):
                await a.call(b.id, "number", Number(1), Number)
            assert b.refusals == {
                (a.id, "not signed"): 1,
                (a.id, "unknown kind"): 1,
                (a.id, "malformed body"): 1,
            }
            assert a.refusals == {(b.id, "malformed reply"): 1}
            assert (await a.call(b.id, "echo", Text("fine"), Text)).text == "fine"

    with caplog.at_level(logging.ERROR):
        run(check)
    assert "/secret" in caplog.text  # it is told here, where it belongs


def test_unreachable_peers_and_own_keys() -> None:
    async def check() -> None:
        async with nodes("tcp", meet=False) as (a, b):
            with pytest.raises(Unreachable):
                await a.call(b.id, "echo", Text("x"), Text)
            a.learn(b.id, ["tcp://127.0.0.1:1"])
            with pytest.raises(Unreachable):
                await a.call(b.id, "echo", Text("x"), Text)
            with pytest.raises(Unreachable, match="tried again"):
                await a.call(b.id, "echo", Text("x"), Text)
            a.learn(b.id, b.addresses())  # news: no waiting
            await a.call(b.id, "echo", Text("x"), Text)
            for who in (a.id, "nobody", "0" * 64):
                with pytest.raises(BadInput, match="peer"):
                    await a.call(who, "echo", Text("x"), Text)
            with pytest.raises(BadInput, match="kind"):
                a.serve("echo", Text, lambda peer, message: _reply(message))
            with pytest.raises(BadInput, match="kind"):
                a.serve("ec\nho", Text, lambda peer, message: _reply(message))

    run(check)


@each_way
def test_the_allow_list_holds_both_ways(way: str) -> None:
    async def check() -> None:
        async with nodes(way, 3) as (a, b, c):
            a.allow = {b.id}
            await b.call(a.id, "echo", Text("x"), Text)
            with pytest.raises(Unreachable):
                await c.call(a.id, "echo", Text("x"), Text)
            with pytest.raises(Unreachable, match="allow-list"):
                await a.call(c.id, "echo", Text("x"), Text)
            assert a.refusals[c.id, "not on the allow-list"] >= 1
            assert a.connections().keys() == {b.id}

    run(check)


@each_way
def test_who_is_refused_too_often_is_cut_off_for_a_while(way: str) -> None:
    async def check() -> None:
        async with nodes(way, strikes=5.0, forgiven_per_s=0.0, ban_s=0.4, ban_most_s=60.0) as (a, b):
            seen: list[bool] = []
            b.on_connection(lambda peer, up: seen.append(up))
            for _ in range(5):
                with pytest.raises((CallRefused, Broken)):
                    await a.call(b.id, "echo", Number(1), Text)
            await until(lambda: seen == [True, False])
            first = b.banned(a.id)
            assert 0 < first <= 0.4
            with pytest.raises((Unreachable, Broken)):
                await a.call(b.id, "echo", Text("x"), Text)
            with pytest.raises(Unreachable, match="banned"):
                await b.call(a.id, "echo", Text("x"), Text)
            await until(lambda: not b.banned(a.id))
            assert (await b.call(a.id, "echo", Text("sorry"), Text)).text == "sorry"
            for _ in range(5):
                b.refuse(a.id, "something")
            assert 0.5 < b.banned(a.id) <= 0.8

    run(check)


def test_calls_beyond_the_rate_are_told_to_come_later_and_do() -> None:
    async def check() -> None:
        async with nodes("memory", calls_per_s=100.0, calls_burst=20.0, strikes=1e6) as (a, b):
            began = time.monotonic()
            await asyncio.gather(*(a.call(b.id, "echo", Text("x"), Text) for _ in range(60)))
            assert time.monotonic() - began > 0.35  # 20 at once, 40 more at 100 a second
            assert b.refusals[a.id, "too many calls"] > 0

    run(check)


def test_bytes_beyond_the_rate_slow_the_peer_down() -> None:
    async def check() -> None:
        async with nodes("memory", bytes_per_s=1e6, bytes_burst=1e5) as (a, b):
            got = asyncio.Event()

            async def sink(peer: str, channel: Channel) -> None:
                while await channel.read():
                    pass
                got.set()

            b.serve_stream("sink", sink)
            began = time.monotonic()
            async with await a.open(b.id, "sink") as channel:
                await channel.write(bytes(600_000))
                await channel.finish()
                await got.wait()
            assert time.monotonic() - began > 0.45

    run(check)


@each_way
def test_no_more_handlers_at_a_time_than_agreed(way: str) -> None:
    async def check() -> None:
        async with nodes(way, concurrent=5) as (a, b):
            busy, most = 0, 0

            async def work(peer: str, message: Number) -> Number:
                nonlocal busy, most
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(0.01)
                busy -= 1
                return message

            b.serve("work", Number, work)
            answers = await asyncio.gather(*(a.call(b.id, "work", Number(i), Number) for i in range(40)))
            assert [answer.value for answer in answers] == list(range(40))
            assert most == 5

    run(check)


@each_way
def test_streams_carry_messages_and_push_back(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            go, total = asyncio.Event(), 0

            async def take(peer: str, channel: Channel) -> None:
                nonlocal total
                first = await channel.receive(Number)
                await go.wait()
                while data := await channel.read():
                    total += len(data)
                await channel.send(Number(total + first.value))

            b.serve_stream("take", take)
            async with await a.open(b.id, "take") as channel:
                await channel.send(Number(5))
                written = 0

                async def pour() -> None:
                    nonlocal written
                    for _ in range(200):
                        await channel.write(bytes(1 << 16))
                        written += 1 << 16
                    await channel.finish()

                pouring = asyncio.create_task(pour())
                last = -1
                while written != last:
                    last = written
                    await asyncio.sleep(0.05)
                assert 0 < written < 8 << 20  # nobody reads, so the writer waits
                go.set()
                assert (await channel.receive(Number)).value == 5 + (200 << 16)
                await pouring
                await channel.close()
            await until(lambda: not a._current[b.id].active and not b._current[a.id].active)
            with pytest.raises(CallRefused):
                async with await a.open(b.id, "no such") as channel:
                    await channel.read()
            assert b.refusals == {(a.id, "unknown kind"): 1}

    run(check)


def test_deadlines_are_learned() -> None:
    async def check() -> None:
        async with nodes("memory", floor_s=0.15, first_s=5.0) as (a, b):
            wait = [0.0]

            async def sleepy(peer: str, message: Text) -> Text:
                await asyncio.sleep(wait[0])
                return message

            b.serve("sleepy", Text, sleepy)
            for _ in range(5):
                await a.call(b.id, "sleepy", Text(""), Text)
            smooth, _ = a.round_trip(b.id) or (9.0, 0)
            wait[0] = 3.0
            began = time.monotonic()
            with pytest.raises(Late):
                await a.call(b.id, "sleepy", Text(""), Text)
            assert 0.1 < time.monotonic() - began < 2.0
            began = time.monotonic()
            with pytest.raises(Late):  # twice as long, after a miss
                await a.call(b.id, "sleepy", Text(""), Text)
            assert time.monotonic() - began > 0.28
            with pytest.raises(Late, match=r"0\.05"):
                await a.call(b.id, "sleepy", Text(""), Text, deadline=0.05)
            wait[0] = 0.2
            await a.call(b.id, "sleepy", Text(""), Text)
            assert (a.round_trip(b.id) or (9.0, 0))[0] < 0.1  # the handler's time is not the network's
            assert a.connections() and smooth < 0.1

    run(check)


def test_a_peer_that_vanished_without_a_word_is_found_out() -> None:
    async def check() -> None:
        async with nodes("memory", 1, floor_s=0.05, first_s=0.1) as (a,):
            mute, transport = await _stranger(a)
            connection = await transport.dial(a.id, a.addresses())
            link = await _greeted(connection)
            await until(lambda: mute.id in a.connections())
            with pytest.raises(Late):
                await a.call(mute.id, "echo", Text("x"), Text)
            await until(lambda: mute.id not in a.connections())
            await link.close()
            await transport.close()

    run(check)


async def _stranger(node: Node):
    """Somebody who speaks the protocol by hand, on the node's hub."""
    identity = Identity.create()
    return identity, type(node.transports[0])(identity, node.transports[0]._hub)


async def _greeted(connection) -> Link:
    link = Link(connection, Standing(Limits()), Limits())
    await link.greet(b"lifelife", bytes(8))
    return link


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (
            pack(Type.CONTROL, encode(Greeting(b"lifelife", b"tokentok", bytes(8))), code=99),
            "another version",
        ),
        (pack(Type.CALL, kind=b"echo"), "no greeting"),
        (pack(Type.CONTROL, b"\xc1", code=VERSION), "malformed body"),
        (pack(Type.CONTROL, bytes(300), code=VERSION, squeezable=False), "too large"),
        (b"\xff" * 16, "no greeting"),
    ],
)
def test_who_does_not_greet_is_not_let_in(first: bytes, reason: str) -> None:
    async def check() -> None:
        async with nodes("memory", 1) as (a,):
            who, transport = await _stranger(a)
            connection = await transport.dial(a.id, a.addresses())
            stream = await connection.open()
            await stream.write(first)
            await until(lambda: a.refusals == {(who.id, reason): 1})
            await until(lambda: not connection.alive)
            assert not a.connections() and not a._links
            await transport.close()

    run(check)


def test_versions_that_differ_are_told() -> None:
    async def check() -> None:
        async with nodes("memory", 1) as (a,):
            _, transport = await _stranger(a)
            connection = await transport.dial(a.id, a.addresses())
            stream = await connection.open()
            await stream.write(pack(Type.CONTROL, encode(Greeting(bytes(8), bytes(8), bytes(8))), code=77))
            head = await read_head(stream)
            assert (head.type, head.code) == (Type.CONTROL, VERSION)
            await transport.close()

    run(check)


def test_greeting_at_leisure_is_bounded() -> None:
    async def check() -> None:
        async with nodes("memory", 1, connect_s=0.1) as (a,):
            who, transport = await _stranger(a)
            connections = [await transport.dial(a.id, a.addresses()) for _ in range(9)]
            await until(lambda: sum(a.refusals.values()) == 9 and not a._links)
            assert a.refusals[who.id, "no greeting"] == 6
            assert a.refusals[who.id, "too many connections of one peer"] == 3
            await until(lambda: not any(connection.alive for connection in connections))
            await transport.close()

    run(check)


@each_way
def test_stopping_lets_calls_finish(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            b.serve("slow", Number, _slow)
            call = asyncio.create_task(a.call(b.id, "slow", Number(7), Number))
            await until(lambda: bool(b._links) and any(link.active for link in b._links))
            await b.stop()
            assert (await call).value == 7
            await until(lambda: not a.connections())
            with pytest.raises(Unreachable):
                await a.call(b.id, "echo", Text("x"), Text)

    run(check)


def test_bodies_are_compressed_where_it_helps_and_never_grow_beyond_what_they_say() -> None:
    assert len(pack(Type.CALL, b"a" * 5000)) < 200
    assert len(pack(Type.CALL, b"a" * 512)) == 16 + 512
    noise = bytes(i * i * 37 % 251 ^ i * 91 % 256 for i in range(5000))
    assert len(pack(Type.CALL, noise)) <= 16 + 5000
    assert unsqueeze(squeeze(noise), 5000) == noise
    bomb = squeeze(bytes(1 << 28))
    tracemalloc.start()
    for full in (1000, 1 << 16, 0):
        with pytest.raises(Malformed):
            unsqueeze(bomb, full)
    with pytest.raises(Malformed):
        unsqueeze(bomb[:-3], 1000)
    with pytest.raises(Malformed):
        unsqueeze(squeeze(b"ab" * 500) + b"tail", 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_a_thousand_calls_of_128_bytes_take_less_than_seconds() -> None:
    class Body(msgspec.Struct):
        data: bytes

    async def check() -> None:
        async with nodes("tcp", calls_per_s=1e6, calls_burst=1e6) as (a, b):
            b.serve("body", Body, lambda peer, message: _reply(message))
            body = Body(bytes(128))

            async def worker() -> None:
                for _ in range(32):
                    await a.call(b.id, "body", body, Body)

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(32)))
            # The claim is 1,000 a second (shown by the benchmark); a busy machine may take a while.
            assert 1024 / (time.perf_counter() - began) > 200

    run(check)
