"""Peers behind NATs, in network namespaces: how they reach each other, and what a new address does."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Kind, Lab, Space, missing

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
KINDS: tuple[Kind, ...] = ("cone", "symmetric")
PROGRAM = str(Path(__file__).with_name("nat_peer.py"))


class Peer:
    """A peer's process in a namespace of the lab."""

    def __init__(self, lab: Lab, space: Space, role: str = "peer") -> None:
        self.space = space
        self._process = lab.python(space, PROGRAM, "0.0.0.0", "4433", role)

    @property
    def id(self) -> str:
        return str(self.do("status")["id"])

    def do(self, what: str, seconds: float = 60, **fields: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        assert ready, f"no answer to {what} within {seconds} s"
        line = self._process.stdout.readline()
        assert line, f"the peer died of {what}"
        return json.loads(line)

    def knows(self, other: Peer) -> None:
        self.do("learn", peer=other.id, addresses=other.do("status")["addresses"])

    def call(self, other: Peer, text: str = "abc") -> Any:
        answer = self.do("call", peer=other.id, text=text)
        assert answer.get("text") == text[::-1], answer
        return answer

    def call_until(self, other: Peer, seconds: float) -> float:
        """Call again and again until an answer comes; how long that took."""
        began = time.monotonic()
        while "text" not in (answer := self.do("call", peer=other.id, text="again")):
            assert time.monotonic() - began < seconds, answer
        return time.monotonic() - began

    def until(self, ready: Any, seconds: float = 20) -> Any:
        """Poll the status until ``ready`` of it."""
        end = time.monotonic() + seconds
        while not ready(status := self.do("status")):
            assert time.monotonic() < end, status
            time.sleep(0.05)
        return status


class World:
    """A relay and an observer in the open, two peers behind a NAT of each kind who know both."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.relay, self.observer = Peer(lab, lab.public(), "relay"), Peer(lab, lab.public())
        self.routers = {f"{kind} {n}": lab.lan(kind) for kind in KINDS for n in (1, 2)}
        self.peers = {name: Peer(lab, lab.host(router)) for name, router in self.routers.items()}
        for peer in self.peers.values():
            for known in (self.relay, self.observer):
                peer.knows(known)
                assert peer.call(known)["path"] != "relayed"

    def ready(self, name: str) -> Peer:
        """That peer, once it has been told its addresses."""
        peer, kind = self.peers[name], name.split(maxsplit=1)[0]
        seen = f"iroh://{self.routers[name].address}:4433"
        relayed = f"relay://{self.relay.id}"
        peer.until(
            lambda status: (
                status["mapping"] == kind
                and (seen in status["addresses"]) == (kind == "cone")
                and relayed in status["addresses"]
            )
        )
        return peer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ("cone 1", "cone 2", "punched"),
        ("cone 1", "symmetric 1", "relayed"),
        ("symmetric 2", "cone 2", "relayed"),
        ("symmetric 1", "symmetric 2", "relayed"),
    ],
)
def test_every_pair_of_nats_connects_and_carries_calls(
    world: World, one: str, other: str, path: str
) -> None:
    first, second = world.ready(one), world.ready(other)
    first.knows(second)
    before = sum(world.relay.do("status")["moved"].values())
    first.call(second)
    first.do("wait", peer=second.id, paths=[path], within=30)
    answer = first.call(second)
    assert second.call(first, "back")["path"] == path
    moved = sum(world.relay.do("status")["moved"].values()) - before
    if path == "relayed":
        assert answer["remote"] == f"relay://{world.relay.id}"
        assert moved > 0
    else:
        assert answer["remote"] == f"iroh://{world.routers[other].address}:4433"


def test_two_peers_recover_when_the_nat_of_one_gets_another_address(world: World) -> None:
    first, second = world.ready("cone 1"), world.ready("cone 2")
    first.knows(second)
    first.call(second)
    world.lab.renumber(world.routers["cone 2"])
    took = first.call_until(second, 60)
    assert second.call(world.relay)["path"] == "direct"
    again = first.call(second)
    print(f"recovered after {took:.1f} s: {again}")
    assert again["path"] == "punched"
    assert again["remote"] == f"iroh://{world.routers['cone 2'].address}:4433"


def test_a_peer_that_moves_to_another_network_is_reached_again(world: World) -> None:
    first, second = world.ready("cone 1"), world.ready("cone 2")
    first.knows(second)
    first.call(second)
    world.lab.move(first.space, world.lab.lan("cone"))
    took = second.call_until(first, 60)
    again = second.call(first)
    print(f"recovered after {took:.1f} s: {again}")
    assert again["path"] == "punched"


def test_a_relayed_connection_becomes_a_direct_one_when_that_is_possible(world: World) -> None:
    first, second = world.ready("symmetric 1"), world.ready("symmetric 2")
    first.knows(second)
    assert first.call(second)["path"] == "relayed"
    for peer in (first, second):
        world.lab.move(peer.space, world.lab.lan("cone"))
    for peer, other in ((first, second), (second, first)):
        peer.do("wait", peer=other.id, paths=["punched", "direct"], within=50)
        assert peer.call(other)["path"] in {"punched", "direct"}
