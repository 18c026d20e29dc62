"""Relays, wishes to dial from both sides, and the ladder, inside one process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from transports import run

from shoal.core import BadInput
from shoal.runtimes.p2p import ladder as ladder_module
from shoal.runtimes.p2p.channel import Channel
from shoal.runtimes.p2p.frames import CallRefused, encode
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.ladder import Ladder, serve_relay
from shoal.runtimes.p2p.link import Link, supersedes
from shoal.runtimes.p2p.nat import PUNCH, SIGNAL, Candidates, Nat, Signed, Wish, dialable
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.relay import LEG, OPEN, Grants, Leg, Open, Opened, Relay
from shoal.runtimes.p2p.transport.base import Broken, Stream, Transport, Unreachable
from shoal.runtimes.p2p.transport.iroh import Iroh
from shoal.runtimes.p2p.transport.memory import Hub, Memory


class Text(msgspec.Struct):
    text: str


async def echo(peer: str, message: Text) -> Text:
    return Text(message.text[::-1])


@dataclass
class Peer:
    """A node with a ladder."""

    node: Node
    relay: Relay
    ladder: Ladder

    @property
    def id(self) -> str:
        return self.node.id

    async def say(self, other: Peer, text: str = "abc") -> str:
        """Call the other; by which path it went."""
        reply = await self.node.call(other.id, "echo", Text(text), Text, deadline=8)
        assert reply.text == text[::-1]
        return self.node.connections()[other.id].path


@asynccontextmanager
async def peers(
    *grants: Grants | None, quic: bool = False, allow: dict[int, set[int]] | None = None
) -> AsyncIterator[list[Peer]]:
    """One peer for each of ``grants``, ordered by id, who do not know each other."""
    hub = Hub()
    identities = sorted((Identity.create() for _ in grants), key=lambda identity: identity.id)
    made = []
    for place, (identity, grant) in enumerate(zip(identities, grants, strict=True)):
        first: Transport = await (Iroh.listen(identity) if quic else Memory.listen(identity, hub))
        relay = Relay(identity, grant)
        allowed = (allow or {}).get(place)
        node = Node(
            identity,
            [first, relay],
            allow=None if allowed is None else {identities[k].id for k in allowed},
        )
        node.serve("echo", Text, echo)
        made.append(Peer(node, relay, Ladder(node, relay)))
    for peer in made:
        await peer.node.start()
        await peer.ladder.start()
    try:
        yield made
    finally:
        for peer in made:
            await peer.ladder.stop()
        await asyncio.gather(*(peer.node.stop() for peer in made))


async def until(ready: Callable[[], Any]) -> None:
    while not ready():
        await asyncio.sleep(0.01)


async def join(relay: Peer, *others: Peer) -> None:
    """Connect the others to the relay, and let them know that it is one."""
    for other in others:
        other.node.learn(relay.id, relay.node.addresses())
        await other.say(relay)
    if relay.relay.grants is not None:
        await until(lambda: all(relay.id in other.relay.offering for other in others))


def test_a_call_through_a_relay_that_sees_only_ciphertext(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = bytearray()
    forward = Relay._pass

    async def listening(self: Relay, circuit: Any, source: Stream, sink: Stream) -> None:
        read = source.read

        async def spy(most: int = 1 << 18) -> bytes:
            data = await read(most)
            passed.extend(data)
            return data

        monkeypatch.setattr(source, "read", spy)
        await forward(self, circuit, source, sink)

    async def test() -> None:
        async with peers(Grants(), None, None) as (relay, one, other):
            await join(relay, one, other)
            assert other.node.addresses()[-1] == f"relay://{relay.id}"
            one.node.learn(other.id, [f"relay://{relay.id}"])
            assert await one.say(other, "a secret word" * 50) == "relayed"
            assert await other.say(one, "a secret word" * 50) == "relayed"
            assert other.node.connections()[one.id].remote == f"relay://{relay.id}"
            assert len(passed) > 500 and b"secret" not in passed and b"terces" not in passed
            assert relay.relay.moved[(one.id, other.id)] == len(passed)
            assert one.ladder.reached["relayed"] == 1
            await one.node.disconnect(other.id)
            await until(lambda: not relay.relay.circuits)

    monkeypatch.setattr(Relay, "_pass", listening)
    run(test())


def test_any_connected_relay_is_found_without_an_address() -> None:
    async def test() -> None:
        async with peers(None, Grants(), None, None) as (idle, relay, one, other):
            await join(idle, one, other)
            await join(relay, one, other)
            assert await one.say(other) == "relayed"
            assert idle.relay.refused["not willing"] == 0  # the one that offers is asked first

    run(test())


@pytest.mark.parametrize(
    ("grants", "joined", "reason"),
    [
        (None, True, "not willing"),
        (Grants(), False, "not connected to both"),
        (Grants(circuits=1), True, "too many circuits"),
        (Grants(circuits_each=1), True, "too many circuits of one peer"),
    ],
)
def test_what_a_relay_refuses(grants: Grants | None, joined: bool, reason: str) -> None:
    async def test() -> None:
        async with peers(grants, None, None, None) as (relay, one, other, third):
            await join(relay, one, third, *([other] if joined else []))
            address = [f"relay://{relay.id}"]
            if grants is not None and joined:  # the one circuit that there may be
                await one.relay.dial(third.id, address)
            with pytest.raises(Unreachable, match=reason):
                await one.relay.dial(other.id, address)
            assert relay.relay.refused == {reason: 1}

    run(test())


def test_a_relay_cannot_pose_as_the_far_end() -> None:
    async def test() -> None:
        async with peers(None, None, None) as (liar, one, other):

            async def deceive(source: str, stream: Channel) -> None:
                """Answer the request for a circuit to somebody by being that somebody."""
                wanted = (await stream.receive(Open)).to
                await stream.send(Opened())
                with pytest.raises(Unreachable):
                    await liar.relay._secure(stream, liar.id, source, initiator=False)
                assert wanted == other.id

            liar.node._streams[OPEN] = deceive
            await join(liar, one)
            with pytest.raises(Unreachable, match="instead of"):
                await one.relay.dial(other.id, [f"relay://{liar.id}"])
            assert other.id not in one.node.connections()

    run(test())


def test_a_peer_that_is_not_allowed_is_not_let_in_by_a_relay() -> None:
    async def test() -> None:
        async with peers(Grants(), None, None, allow={2: {0}}) as (relay, one, other):
            await join(relay, one, other)
            with pytest.raises(Unreachable, match="not allowed"):
                await one.relay.dial(other.id, [f"relay://{relay.id}"])

    run(test())


def test_a_relay_bounds_the_rate() -> None:
    async def test() -> None:
        async with peers(Grants(bytes_each=200_000), None, None) as (relay, one, other):
            await join(relay, one, other)

            async def swallow(_: str, stream: Channel) -> None:
                while await stream.read():
                    pass

            other.node.serve_stream("sink", swallow)
            began = time.monotonic()
            assert await one.say(other, "x" * 1000) == "relayed"
            stream = await one.node.open(other.id, "sink")
            with pytest.raises(TimeoutError):  # 3 MB take 14 s
                async with asyncio.timeout(1.0):
                    await stream.write(bytes(3_000_000))
            moved = relay.relay.moved[(one.id, other.id)]
            assert moved <= 200_000 * (1 + time.monotonic() - began) + 2 * 65_536

    run(test())


def test_a_circuit_without_traffic_is_closed() -> None:
    async def test() -> None:
        async with peers(Grants(idle_s=0.3), None, None) as (relay, one, other):
            await join(relay, one, other)
            one.node.learn(other.id, [f"relay://{relay.id}"])
            for text in "abc":  # traffic keeps it
                await one.say(other, text * 2000)
                await asyncio.sleep(0.15)
            assert len(relay.relay.circuits) == 1
            await until(lambda: not relay.relay.circuits)
            await until(lambda: other.id not in one.node.connections())
            assert await one.say(other) == "relayed"

    run(test())


def test_malformed_requests_are_counted_and_open_nothing() -> None:
    async def test() -> None:
        async with peers(Grants(), None) as (relay, one):
            await join(relay, one)
            for kind, message in ((OPEN, {"to": "x"}), (LEG, {"source": 5}), (OPEN, b"\xff" * 100)):
                stream = await one.node.open(relay.id, kind)
                await stream.send(message)
                with pytest.raises(Broken):
                    await stream.receive(Opened)
                stream.abort()
            assert relay.node.refusals[(one.id, "malformed body")] == 3
            stream = await one.node.open(relay.id, LEG)
            await stream.send(Leg(relay.id))
            assert (await stream.receive(Opened)).refused
            stream.abort()
            assert not relay.relay.circuits

    run(test())


def test_a_relayed_connection_gives_way_to_a_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_module, "LOOK", 0.05)

    async def test() -> None:
        async with peers(Grants(), None, None) as (relay, one, other):
            await join(relay, one, other)
            one.node.learn(other.id, [f"relay://{relay.id}"])
            assert await one.say(other) == "relayed"
            one.node.learn(other.id, other.node.addresses())
            await until(lambda: one.node.connections()[other.id].path == "direct")
            await until(lambda: other.node.connections()[one.id].path == "direct")
            assert await other.say(one) == "direct"
            await until(lambda: not relay.relay.circuits)

    run(test())


@pytest.mark.parametrize("better", ["smaller", "larger"])
def test_a_direct_connection_stays_whoever_dialled_it(better: str) -> None:
    """The relayed one is the smaller's, which would stay if both were of a kind."""

    async def test() -> None:
        async with peers(Grants(), None, None) as (relay, one, other):
            await join(relay, one, other)
            one.node.learn(other.id, [f"relay://{relay.id}"])
            assert await one.say(other) == "relayed"
            source, target = (one, other) if better == "smaller" else (other, one)
            direct = await source.node.dial_direct(target.id, target.node.addresses()[:1])
            await source.node.adopt(direct)
            await until(lambda: not relay.relay.circuits)
            assert await one.say(other) == await other.say(one) == "direct"
            # ... and a second relayed one does not take its place, at either end.
            await source.node.adopt(await source.relay.dial(target.id, [f"relay://{relay.id}"]))
            await until(lambda: not relay.relay.circuits)
            assert await one.say(other) == await other.say(one) == "direct"

    run(test())


@pytest.mark.parametrize("paths", list(itertools.product(["direct", "punched", "relayed"], repeat=2)))
@pytest.mark.parametrize("smaller_dialled", list(itertools.product([True, False], repeat=2)))
def test_both_ends_keep_the_same_of_two_connections(
    paths: tuple[str, str], smaller_dialled: tuple[bool, bool]
) -> None:
    """Whichever comes first at each end; but of two that one peer dialled the later stays."""

    def link(path: str, dialled: bool, token: bytes, peer: str) -> Link:
        connection = SimpleNamespace(path=path, dialled=dialled, alive=True, peer=peer)
        made = Link(connection, None, None)  # type: ignore[arg-type]
        made.token = token
        return made

    ends = {
        own: [
            link(path, smaller == (own == "a"), bytes([place]) * 8, "b" if own == "a" else "a")
            for place, (path, smaller) in enumerate(zip(paths, smaller_dialled, strict=True), 1)
        ]
        for own in "ab"
    }
    kept = {
        (own, order): supersedes(links[order], links[1 - order], own, bytes(8)) == (order == 1)
        for own, links in ends.items()
        for order in (0, 1)
    }
    assert kept["a", 0] == kept["b", 0] and kept["a", 1] == kept["b", 1]
    relayed = [path == "relayed" for path in paths]
    if relayed[0] != relayed[1]:
        assert kept["a", 0] == kept["a", 1] == (not relayed[1])
    elif smaller_dialled[0] != smaller_dialled[1]:
        assert kept["a", 0] == kept["a", 1] == smaller_dialled[1]
    else:
        assert kept["a", 1] and not kept["a", 0]


def test_simultaneous_dial_through_a_common_peer() -> None:
    """Nobody knows an address of the other: the one in between passes them on.

    There is no NAT between them, so what comes of it is a plain connection, for both.
    """

    async def test() -> None:
        async with peers(None, None, None, quic=True) as (helper, one, other):
            await join(helper, one, other)
            await until(lambda: one.ladder.nat.mapping == other.ladder.nat.mapping == "none")
            assert await one.say(other) == "direct"
            assert await other.say(one) == "direct"
            assert one.ladder.reached == {"direct": 2}

    run(test())


def signed(identity: Identity, said: Wish, **changes: Any) -> Signed:
    body = encode(said)
    return msgspec.structs.replace(Signed(body, identity.sign(PUNCH, body)), **changes)


def test_wishes_that_are_refused() -> None:
    async def test() -> None:
        async with peers(None, None, None) as (helper, one, other):
            await join(helper, one, other)

            async def refused(kind: str, sender: Peer, to: Peer, message: Signed) -> str:
                with pytest.raises(CallRefused) as error:
                    await sender.node.call(to.id, kind, message, Candidates)
                return error.value.reason

            identity, mine = one.node.identity, Wish(one.id, other.id, 5, (), "unknown")
            good = signed(identity, mine)
            assert await refused(PUNCH, other, helper, good) == "another peer's wish"
            assert await refused(PUNCH, one, helper, signed(other.node.identity, mine)) == "forged wish"
            assert await refused(PUNCH, one, helper, signed(identity, mine, wish=b"x")) == "malformed wish"
            stranger = Wish(one.id, Identity.create().id, 5, (), "unknown")
            reason = await refused(PUNCH, one, helper, signed(identity, stranger))
            assert reason == "not connected to that peer"
            assert await refused(SIGNAL, one, helper, good) == "not for this peer"
            await helper.node.call(other.id, SIGNAL, good, Candidates)
            assert await refused(SIGNAL, helper, other, good) == "an old wish"
            assert other.node.refusals[(helper.id, "an old wish")] == 1

    run(test())


def test_mapping_from_what_observers_say() -> None:
    async def test() -> None:
        iroh = await Iroh.listen(Identity.create())
        identity = Identity(iroh._endpoint.secret_key().to_bytes())
        node = Node(identity, [iroh])
        nat = Nat(node)
        outside = "iroh://192.0.2.7:"
        for seen, mapping in (
            ([], "unknown"),
            ([outside + "5"], "unknown"),
            ([outside + "5", outside + "5"], "cone"),
            ([outside + "5", outside + "6"], "symmetric"),
            ([outside + "5", iroh.bound()[0]], "none"),
        ):
            nat._seen = {str(place): address for place, address in enumerate(seen)}
            nat._publish()
            assert nat.mapping == mapping
            assert (outside + "5" in node.addresses()) == (bool(seen) and mapping != "symmetric")
        await node.stop()

    run(test())


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("iroh://192.0.2.1:443", True),
        ("iroh://[2001:db8::1]:443", True),
        ("tcp://192.0.2.1:443", False),
        ("iroh://example.org:443", False),
        ("iroh://192.0.2.1:0", False),
        ("iroh://192.0.2.1:65536", False),
        ("iroh://192.0.2.1:٤", False),
        ("iroh://224.0.0.1:443", False),
        ("iroh://0.0.0.0:443", False),
        ("iroh://255.255.255.255:443", False),
        ("", False),
    ],
)
def test_what_may_be_dialled_at_a_strangers_word(address: str, good: bool) -> None:
    assert dialable(address) == good


def test_serve_relay() -> None:
    async def test() -> None:
        listening: asyncio.Future[tuple[Node, Relay]] = asyncio.get_running_loop().create_future()

        async def ready(node: Node, relay: Relay) -> None:
            listening.set_result((node, relay))

        serving = asyncio.create_task(serve_relay(Identity.create(), "127.0.0.1", 0, ready=ready))
        node, relay = await listening
        assert {address.partition(":")[0] for address in node.addresses()} == {"iroh", "tcp"}
        async with peers(None, None, quic=True) as (one, other):
            for peer in (one, other):
                peer.node.learn(node.id, node.addresses())
                await peer.ladder.nat.observe(node.id)
                assert node.id in peer.relay.offering
            connection = await one.relay.dial(other.id, [f"relay://{node.id}"])
            assert connection.path == "relayed" and len(relay.circuits) == 1
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(test())


def test_a_relay_is_attached_to_its_own_node_only() -> None:
    async def test() -> None:
        identity = Identity.create()
        node = Node(identity, [await Memory.listen(identity, Hub())])
        with pytest.raises(BadInput, match="transports"):
            Relay(identity).attach(node)
        with pytest.raises(BadInput, match="circuits"):
            Grants(circuits=0)
        await node.stop()

    run(test())
