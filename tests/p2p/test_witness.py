"""A peer that tells its neighbours different things is found out by all; honest ones never are."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.network.parcel import Parcel, opened, sealed
from shoal.network.port import Buffer
from shoal.runtimes.base import Plan
from shoal.runtimes.p2p import witness as witness_module
from shoal.runtimes.p2p.desk import Desk, Patience
from shoal.runtimes.p2p.frames import Refused
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.port import Loop, PeerPort
from shoal.runtimes.p2p.station import parcel_limit
from shoal.runtimes.p2p.transport.memory import Hub, Memory
from shoal.runtimes.p2p.witness import UNSIGNED, Heard, Proofs, Said, Witness
from shoal.runtimes.session import Session

RUN = b"run 8 by"


class Liar(Desk):
    """Tells some seats, in some ticks, something else than the others, and signs both."""

    victims: frozenset[int] = frozenset()
    when: Callable[[int], bool] = staticmethod(lambda tick: tick >= 3)

    async def swap(
        self, tick: int, call: int, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]
    ) -> dict[int, memoryview]:
        assert self.witness is not None
        for seat, pieces in out.items():
            data = bytearray().join(pieces)
            parcel = opened(data)
            if seat in self.victims and self.when(tick) and parcel.tensors["frames"].numel():
                frames = parcel.tensors["frames"].clone()
                frames[0, -3] ^= 1
                data = bytearray().join(sealed(Parcel(parcel.tensors | {"frames": frames}, parcel.data)))
            signature = await self.witness.sign(tick, call, [data])
            self._send(seat, (tick, call, tick, signature), data)
        return await super().swap(tick, call, {}, want)


class Crowd:
    """All peers of a run in one process, a thread each, over memory."""

    def __init__(self, plan: Plan, kind: Callable[[int], type[Desk]] = lambda seat: Desk) -> None:
        self.plan, self.loop = plan, Loop()
        self.ports = [PeerPort(self.loop, seat, plan.peers) for seat in range(plan.peers)]
        self.sessions = [Session.open(plan, port) for port in self.ports]
        self.loop.run(self._start(kind))

    async def _start(self, kind: Callable[[int], type[Desk]]) -> None:
        hub, identities = Hub(), [Identity.create() for _ in self.ports]
        self.nodes = [Node(who, [await Memory.listen(who, hub)]) for who in identities]
        ids = [node.id for node in self.nodes]
        for node, who, port, session in zip(self.nodes, identities, self.ports, self.sessions, strict=True):
            for other in self.nodes:
                node.learn(other.id, other.addresses())
            others = [peer for peer in ids if peer != node.id]
            made = kind(port.here)
            # Nobody speaks to a liar that is known.
            patience = Patience(most_s=10, least_s=2) if made is Desk else Patience(most_s=1, tries=1)
            port.desk = made(
                node, RUN, port.here, parcel_limit(session.state), patience,
                holder=ids.__getitem__, seat=ids.index, gone=lambda seat: False,
                witness=Witness(node, who, RUN, lambda others=others: others, lambda: ids),
            )  # fmt: skip
            await node.start()

    def run(self) -> None:
        threads = [threading.Thread(target=lambda s=s: list(s.ticks())) for s in self.sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def until(self, ready: Callable[[], bool]) -> None:
        """The exchanges go on when the ticks are over."""
        end = time.monotonic() + 10
        while not self.loop.call(ready):
            assert time.monotonic() < end, self.liars()
            time.sleep(0.02)

    def liars(self) -> list[set[int]]:
        """Whom each peer holds a proof against, by seat."""
        ids = [node.id for node in self.nodes]
        return [{ids.index(peer) for peer in port.desk.witness.proofs} for port in self.ports]  # type: ignore[union-attr]

    def close(self) -> None:
        async def stop() -> None:
            for port in self.ports:
                await port.desk.close()
            await asyncio.gather(*(node.stop() for node in self.nodes))

        self.loop.run(stop())
        self.loop.close()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_module, "EVERY", 0.05)
    torch.set_num_threads(1)


def plan(rounds: int, graph: str, codec: Any, method: Any = "dsgd", **network: Any) -> Plan:
    task = {"name": "supervised", "limit": 200, "model": "linear"}
    return Plan(
        method=method, task=task, network={"graph": graph, "codec": codec, **network},
        peers=6, rounds=rounds, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize(("graph", "codec"), [("ring", "int8"), ("complete", [])])
def test_a_liar_is_found_by_all(graph: str, codec: Any) -> None:
    class LiesToOne(Liar):
        victims = frozenset({1})

    crowd = Crowd(plan(40, graph, codec), lambda seat: LiesToOne if seat == 0 else Desk)
    crowd.run()
    try:
        crowd.until(lambda: crowd.liars()[1:] == [{0}] * 5)
        for seat in (1, 5):  # its neighbours
            node, witness = crowd.nodes[seat], crowd.ports[seat].desk.witness
            assert node.refusals[crowd.nodes[0].id, "equivocation"] >= 1
            assert witness is not None and witness.proofs[crowd.nodes[0].id][0].tick < 30
            assert not any(peer != crowd.nodes[0].id for peer, _ in node.refusals)
    finally:
        crowd.close()


def test_a_single_lie_to_one_of_many_is_found_by_all() -> None:
    class LiesOnce(Liar):
        victims = frozenset({3})
        when = staticmethod(lambda tick: tick == 5)

    crowd = Crowd(plan(30, "complete", "int8"), lambda seat: LiesOnce if seat == 0 else Desk)
    crowd.run()
    try:
        crowd.until(lambda: crowd.liars()[1:] == [{0}] * 5)
    finally:
        crowd.close()


@pytest.mark.parametrize(
    ("codec", "method", "network"),
    [
        ("int8", "dsgd", {}),
        ([{"name": "topk", "fraction": 0.1}], "dsgd", {}),
        ("int8", "gradient-tracking", {}),
        ([], "centered-clip", {}),
        ("int8", "fedavg", {}),
        ("int8", "modest", {}),  # shares messages, which may differ
    ],
)
def test_honest_peers_are_never_accused(codec: Any, method: str, network: dict[str, Any]) -> None:
    crowd = Crowd(plan(12, "complete", codec, method, **network))
    crowd.run()
    try:
        assert crowd.liars() == [set()] * 6
        assert not any(node.refusals for node in crowd.nodes)
        assert crowd.sessions[0].done == 12
    finally:
        crowd.close()


async def some(count: int, kept: Path | None = None, run: bytes = RUN) -> list[Witness]:
    """Witnesses of one run that compare only when a test lets them."""
    hub, made = Hub(), []
    identities = [Identity.create() for _ in range(count)]
    for who in identities:
        node = Node(who, [await Memory.listen(who, hub)])
        await node.start()
        made.append(Witness(node, who, run, list, lambda: [i.id for i in identities], kept))
    for one in made:
        for other in made:
            one.node.learn(other.node.id, other.node.addresses())
    return made


def spoken(text: bytes, **more: Any) -> bytearray:
    """A broadcast of one sender."""
    frames = torch.tensor([list(text)], dtype=torch.uint8)
    told = {"ids": torch.tensor([3]), "length": torch.tensor([len(text)]), "frames": frames}
    return bytearray().join(sealed(Parcel(told | more)))


def test_what_is_witnessed_and_what_is_not() -> None:
    async def test() -> None:
        one, other = await some(2)
        source = one.node.id
        signature = await one.sign(7, 1, [spoken(b"abc")])
        # What may differ between listeners is not in the digest; edges and replicas are of one's own.
        for more in (
            {},
            {"whole": torch.ones(1, 2)},
            {"dst": torch.tensor([1])},
            {"version": torch.ones(1)},
        ):
            await other.hear(source, 7, 1, signature, spoken(b"abc", **more))
        for tick, call, parcel in ((8, 1, spoken(b"abc")), (7, 2, spoken(b"abc")), (7, 1, spoken(b"abd"))):
            with pytest.raises(Refused, match="unsigned"):
                await other.hear(source, tick, call, signature, parcel)
        with pytest.raises(Refused, match="unsigned"):
            await other.hear(source, 7, 1, UNSIGNED, spoken(b"abc", scalars=torch.ones(1, 1)))
        for data in (sealed(Parcel({}, b"text")), sealed(Parcel({"flat": torch.ones(2, 2)}))):
            assert await one.sign(7, 1, [bytearray().join(data)]) == UNSIGNED
            await other.hear(source, 7, 1, UNSIGNED, bytearray().join(data))
        assert not other.proofs
        for each in (one, other):
            await each.node.stop()

    asyncio.run(test())


def test_two_statements_are_a_proof_and_forged_ones_are_none() -> None:
    async def test() -> None:
        (liar, one, other, third, fresh), (stranger,) = await some(5), await some(1)
        source = liar.node.id
        said = [await _said(liar, 5, text) for text in (b"abc", b"abd")]
        forged = Said(source, 5, 0, bytes(32), bytes(64))

        # Hearsay that is forged, before or after the true statement, accuses nobody but its teller.
        await third.node.call(one.node.id, "run/heard", Heard((forged,), ()), Proofs)
        await one.hear(source, 5, 0, said[0].signature, spoken(b"abc"))
        assert one.node.refusals[third.node.id, "forged statement"] == 1
        await third.node.call(one.node.id, "run/heard", Heard((forged,), ()), Proofs)
        assert one.node.refusals[third.node.id, "forged statement"] == 2 and not one.proofs
        far = Said(source, 5000, 0, bytes(32), bytes(64))
        outside = await _said(stranger, 5, b"abc")
        await third.node.call(one.node.id, "run/heard", Heard((far, outside), ()), Proofs)
        assert set(one._held) == {5} and len(one._held[5]) == 1

        # The other statement, from the one who heard it, convicts; whoever asks gets the proof.
        await other._ask(one.node.id, Heard((said[1],), ()))
        assert set(one.proofs) == set(other.proofs) == {source}
        assert one.node.refusals[source, "equivocation"] == other.node.refusals[source, "equivocation"] == 1
        with pytest.raises(Refused, match="equivocation"):
            await one.hear(source, 6, 0, UNSIGNED, spoken(b"abc"))

        # A proof that is none.
        liars = {third.node.id: (said[0], said[0]), "x": (said[0], forged)}
        third.proofs = liars  # type: ignore[assignment]
        await fresh._ask(third.node.id, Heard((), ()))
        assert not fresh.proofs and fresh.node.refusals[third.node.id, "forged proof"] == 2
        for each in (liar, one, other, third, fresh, stranger):
            await each.node.stop()

    async def _said(who: Witness, tick: int, text: bytes) -> Said:
        parcel = spoken(text)
        digest = witness_module._hash(parcel)
        assert digest
        return Said(who.identity.id, tick, 0, digest, await who.sign(tick, 0, [parcel]))

    asyncio.run(test())


def test_a_peer_that_comes_back_is_silent_where_it_may_have_spoken(tmp_path: Path) -> None:
    async def test() -> None:
        kept = tmp_path / "spoken"
        for tick, before in ((4, None), (9, 4)):
            (one,) = await some(1, kept)
            assert before is None or [one.silent(t) for t in (before, before + 1)] == [True, False]
            await one.sign(tick, 0, [spoken(b"abc")])
            assert not one.silent(tick)  # this life knows what it said
            await one.node.stop()
        (of_another_run,) = await some(1, kept, b"8 others")
        assert not of_another_run.silent(0)
        await of_another_run.node.stop()

    asyncio.run(test())
