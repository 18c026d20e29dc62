"""SWIM among peers that may lie, in virtual time: convergence, failures, loss, partitions, forgeries."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec import msgpack, structs
from virtual import run

from shoal.runtimes.p2p.frames import Late
from shoal.runtimes.p2p.gossip import Doubt, Gossip
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.membership import Membership, Sync, Synced
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.probe import Ack, Answer, Ask, Ping
from shoal.runtimes.p2p.records import SignedRecord
from shoal.runtimes.p2p.roster import Member, State
from shoal.runtimes.p2p.ticket import Ticket
from shoal.runtimes.p2p.transport.memory import Hub, Memory

RUN = "0f" * 16
LATENCY = 0.01


class World:
    """A hub with latency, loss, silent partitions and silent deaths. Counts what is sent."""

    def __init__(self, seed: int = 0) -> None:
        self.hub = Hub()
        self.side: dict[str, int] = {}
        self.loss = 0.0
        self.draw = random.Random(seed)
        self.largest: Counter[str] = Counter()

    def lost(self, one: str, other: str) -> bool:
        return self.side.get(one) != self.side.get(other) or self.draw.random() < self.loss


class Lossy(Node):
    """A node whose calls and answers may be lost without a sign."""

    def __init__(self, who: Identity, transport: Memory, world: World) -> None:
        super().__init__(who, [transport])
        self.world = world

    async def call(self, peer, kind, message, reply, *, deadline=None, **options):
        world = self.world
        try:
            async with asyncio.timeout(deadline):
                await asyncio.sleep(LATENCY * world.draw.uniform(1, 3))
                if world.lost(self.id, peer):
                    await asyncio.sleep(3600)
                answer = await super().call(peer, kind, message, reply, deadline=deadline, **options)
                if world.lost(self.id, peer):
                    await asyncio.sleep(3600)
                size = max(len(msgpack.encode(message)), len(msgpack.encode(answer)))
                world.largest[kind] = max(world.largest[kind], size)
                return answer
        except TimeoutError:
            raise Late(peer[:8]) from None


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


async def member(
    world: World, number: int, *, where: str | None = None, run: str = RUN, **options
) -> Membership:
    """Number ``number``, running, alone."""
    who = identity(number)
    node = Lossy(who, await Memory.listen(who, world.hub, where), world)
    await node.start()
    one = Membership(node, who, run, draw=random.Random(number), **options)
    await one.start()
    return one


async def end(*members: Membership) -> None:
    await asyncio.gather(*(one.stop() for one in members))
    await asyncio.gather(*(one.node.stop() for one in members))


@asynccontextmanager
async def cluster(size: int, seed: int = 0, **options) -> AsyncIterator[tuple[World, list[Membership]]]:
    """Members 1..size, all joined through number 1."""
    world = World(seed)
    members = [await member(world, number, **options) for number in range(1, size + 1)]
    everyone = list(members)
    for one in members[1:]:
        assert await one.join([ticket(members[0])]) == [members[0].record.peer]
    try:
        yield world, members
    finally:
        await end(*everyone)


def ticket(member: Membership) -> Ticket:
    return Ticket(member.record.peer, tuple(member.node.addresses()), RUN)


def states(member: Membership) -> Counter[State]:
    return Counter(row.state for row in member.members().values())


def silence(world: World, member: Membership) -> None:
    """As if its machine had lost its power: connections stay, answers do not come."""
    world.side[member.record.peer] = -1


async def until(condition: Callable[[], bool], periods: int) -> int:
    """Periods that passed until the condition held."""
    for passed in range(periods + 1):
        if condition():
            return passed
        await asyncio.sleep(1.0)
    raise AssertionError(f"not within {periods} periods")


def agreed(members: list[Membership], **expected: int) -> Callable[[], bool]:
    want = Counter({State(name): count for name, count in expected.items()})
    return lambda: all(states(one) == want for one in members)


def test_20_members_converge() -> None:
    async def main() -> int:
        async with cluster(20) as (_, members):
            passed = await until(agreed(members, alive=20), 15)
            tables = {tuple((p, m.record.signed) for p, m in one.members().items()) for one in members}
            assert len(tables) == 1
            assert all(one.known(other.record.peer) for one in members for other in members)
            assert not any(one.node.refusals for one in members)
            return passed

    assert run(main()) <= 8


def test_a_killed_member_is_detected_by_all() -> None:
    async def main() -> list[int]:
        took = []
        for seed in range(2):
            async with cluster(20, seed) as (world, members):
                await until(agreed(members, alive=20), 15)
                silence(world, members[7])
                rest = members[:7] + members[8:]
                took.append(await until(agreed(rest, alive=19, dead=1), 30))
        return took

    run(main())


def test_a_killed_process_is_noticed_at_once() -> None:
    async def main() -> None:
        async with cluster(8) as (_, members):
            await until(agreed(members, alive=8), 15)
            await until(lambda: all(len(one.node.connections()) == 7 for one in members), 20)
            dead = members.pop(3)
            await end(dead)
            await asyncio.sleep(0.5)
            peer = dead.record.peer
            assert all(one.members()[peer].state is State.SUSPECT for one in members)
            await until(agreed(members, alive=7, dead=1), members[0].roster.patience + 2)

    run(main())


def test_no_one_is_declared_dead_at_20_percent_loss() -> None:
    async def main() -> tuple[Counter, int]:
        seen: Counter[State] = Counter()

        async def watch(_: str, row: Member | None) -> None:
            assert row is not None
            seen[row.state] += 1

        async with cluster(20) as (world, members):
            await until(agreed(members, alive=20), 15)
            for one in members:
                one.on_change(watch)
            before = {one.record.peer: one.record.sequence for one in members}
            world.loss = 0.2
            await asyncio.sleep(30)
            world.loss = 0.0
            await until(agreed(members, alive=20), 12)
            return seen, sum(one.record.sequence - before[one.record.peer] for one in members)

    seen, refutations = run(main())
    assert seen[State.SUSPECT] > 20  # there was something to refute,
    assert refutations > 20  # it was refuted,
    assert seen[State.DEAD] == 0  # and believed.


def test_a_partition_heals_by_itself() -> None:
    async def main() -> int:
        async with cluster(16) as (world, members):
            await until(agreed(members, alive=16), 15)
            for one in members[:6]:
                world.side[one.record.peer] = 1
            await until(agreed(members[:6], alive=6, dead=10), 60)
            await until(agreed(members[6:], alive=10, dead=6), 60)
            world.side.clear()
            return await until(agreed(members, alive=16), 20)

    assert run(main()) <= 12


def test_two_lost_contact_and_meet_again() -> None:
    """With nobody to ask, and nobody else alive."""

    async def main() -> None:
        async with cluster(2) as (world, members):
            await until(agreed(members, alive=2), 5)
            world.side[members[0].record.peer] = 1
            await until(agreed(members, alive=1, dead=1), 30)
            world.side.clear()
            await until(agreed(members, alive=2), 12)

    run(main())


def test_leaving_is_no_death_and_one_may_come_back() -> None:
    async def main() -> None:
        async with cluster(12) as (_, members):
            await until(agreed(members, alive=12), 15)
            await members[4].leave()
            await until(agreed(members[:4] + members[5:], alive=11, left=1), 8)
            await members[4].start()
            await members[4].join([ticket(members[0])])
            await until(agreed(members, alive=12), 12)

    run(main())


def test_broken_connections_and_a_partition_heal() -> None:
    async def main() -> None:
        async with cluster(8) as (world, members):
            await until(agreed(members, alive=8), 15)
            here, there = members[:3], members[3:]
            pairs = [(one.record.peer, other.record.peer) for one in here for other in there]
            for pair in pairs:
                world.hub.cut(*pair)
            await until(lambda: agreed(here, alive=3, dead=5)() and agreed(there, alive=5, dead=3)(), 40)
            for pair in pairs:
                world.hub.heal(*pair)
            await until(agreed(members, alive=8), 20)

    run(main())


def test_one_who_moved_and_lost_its_state_is_learned_again() -> None:
    async def main() -> None:
        async with cluster(8) as (world, members):
            await until(agreed(members, alive=8), 15)
            gone = members.pop(5)
            peer = gone.record.peer
            gone.roster.speak(above=2**50)  # so far that the clock will not make up for it
            await until(lambda: all(one.members()[peer].record == gone.record for one in members), 12)
            await end(gone)
            await until(agreed(members, alive=7, dead=1), 40)
            back = await member(world, 6, where="elsewhere")
            assert back.record.peer == peer
            assert back.record.sequence < gone.record.sequence
            await back.join([ticket(members[0])])
            members.append(back)
            await until(agreed(members, alive=8), 12)
            await until(
                lambda: all(one.node.known(peer) == ("memory://elsewhere",) for one in members[:-1]), 12
            )
            assert back.record.sequence > gone.record.sequence
            assert all(one.members()[peer].record == back.record for one in members)
            await end(back)

    run(main())


def test_a_new_address_is_told_to_all() -> None:
    async def main() -> None:
        async with cluster(10) as (world, members):
            await until(agreed(members, alive=10), 15)
            mover = members.pop(2)
            mover.node.transports.append(await Memory.listen(identity(3), world.hub, "roaming"))
            told = tuple(mover.node.addresses())
            assert "memory://roaming" in told
            await until(lambda: all(one.node.known(mover.record.peer) == told for one in members), 15)
            await until(agreed([mover, *members], alive=10), 15)

    run(main())


def test_alone_it_keeps_trying_its_contacts() -> None:
    async def main() -> None:
        world = World()
        early = await member(world, 1)
        peer = identity(2).id
        assert await early.join([Ticket(peer, (f"memory://{peer}",), RUN)]) == []
        await asyncio.sleep(20)
        late = await member(world, 2)
        await until(agreed([early, late], alive=2), 8)
        await end(early, late)

    run(main())


def test_members_of_another_run_are_refused() -> None:
    async def main() -> None:
        world = World()
        here, there = await member(world, 1), await member(world, 2, run="another")
        assert await there.join([ticket(here)]) == []
        await asyncio.sleep(5)
        assert states(here) == states(there) == Counter({State.ALIVE: 1})
        assert here.node.refusals[there.record.peer, "record of another run"] > 0
        await end(here, there)

    run(main())


def test_the_allow_list_holds_against_gossip_too() -> None:
    async def main() -> None:
        allowed = [identity(number).id for number in (1, 2, 3)]
        async with cluster(3, allow=allowed) as (world, members):
            await until(agreed(members, alive=3), 10)
            stranger = await member(world, 9)
            assert await stranger.join([ticket(members[0])]) == [members[0].record.peer]
            await asyncio.sleep(10)
            assert all(states(one) == Counter({State.ALIVE: 3}) for one in members)
            assert set(stranger.members()) == {stranger.record.peer, members[0].record.peer}
            await end(stranger)

    run(main())


def test_callbacks_hear_of_every_member_once_it_is_known() -> None:
    async def main() -> None:
        heard: dict[str, list[State]] = {}

        async def callback(peer: str, row: Member | None) -> None:
            await asyncio.sleep(0)
            assert row is not None
            heard.setdefault(peer, []).append(row.state)

        async with cluster(1) as (world, [first]):
            first.on_change(callback)
            second = await member(world, 2)
            await second.join([ticket(first)])
            await until(lambda: heard == {second.record.peer: [State.ALIVE]}, 5)
            await second.leave()
            await until(lambda: heard == {second.record.peer: [State.ALIVE, State.LEFT]}, 5)
            await end(second)

    run(main())


def test_a_fault_in_a_callback_is_raised_by_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def callback(peer: str, row: Member | None) -> None:
            raise KeyError(peer)

        world = World()
        first, second = await member(world, 1), await member(world, 2)
        first.on_change(callback)
        await second.join([ticket(first)])
        await asyncio.sleep(2)
        with pytest.raises(ExceptionGroup):
            await first.stop()
        await end(first, second)

    run(main())
    assert "membership ended" in caplog.text


def test_a_helper_cannot_answer_for_the_dead() -> None:
    """A member that says of everyone asked about: yes, there it is, and signs so itself."""

    async def main() -> None:
        async with cluster(5) as (world, members):
            await until(agreed(members, alive=5), 10)
            liar, dead = members[4], members[3]

            async def yes(sender: str, ask: Ask) -> Answer:
                return Answer(identity(5).sign("swim/answer", liar._prober._challenge(sender, ask.nonce)))

            del liar.node._services["swim/ask"]
            liar.node.serve("swim/ask", Ask, yes)
            silence(world, dead)
            await until(agreed(members[:3], alive=4, dead=1), 30)
            assert sum(one.node.refusals[liar.record.peer, "forged answer"] for one in members[:3]) > 0

    run(main())


def test_a_slanderer_neither_kills_nor_drives_up_numbers() -> None:
    """Every period it doubts everyone, to everyone, at every number it knows, and beyond."""

    async def main() -> tuple[int, int]:
        async with cluster(6) as (_, members):
            await until(agreed(members, alive=6), 10)
            liar, rest = members[5], members[:5]
            worst = [0]

            async def watch(_: str, row: Member | None) -> None:
                worst[0] += row is not None and row.state is not State.ALIVE

            for one in rest:
                one.on_change(watch)
            start = max(one.record.sequence for one in rest)
            for _ in range(30):
                rows = [row for row in liar.members().values() if row.record.peer != liar.record.peer]
                doubts = tuple(
                    Doubt(row.record.peer, row.incarnation + more) for row in rows for more in (0, 1, 10**6)
                )
                for victim in rest:
                    sync = Sync(liar.record.signed, liar.roster.digest(), (), doubts)
                    await liar._prober.call(victim.record.peer, "swim/sync", sync, Synced)
                await asyncio.sleep(1)
            assert all(states(one) == Counter({State.ALIVE: 6}) for one in rest)
            return worst[0], max(one.record.sequence for one in rest) - start

    suspicions, steps = run(main())
    assert suspicions == 0
    assert steps <= 40  # at most one refutation a period (of its own clock), however many doubts


def test_a_replayed_or_forged_record_changes_nothing() -> None:
    async def main() -> None:
        async with cluster(4) as (_, members):
            await until(agreed(members, alive=4), 10)
            victim, liar, honest = members[1], members[3], members[0]
            old = victim.record.signed
            victim.announce(name="new")
            await until(lambda: honest.members()[victim.record.peer].record == victim.record, 10)
            newer = structs.replace(victim.record.said, sequence=victim.record.sequence + 1, left=True)
            payload = msgpack.encode(newer)
            forgeries = [
                SignedRecord(payload, victim.record.signed.signature),
                SignedRecord(payload, identity(4).sign("record", payload)),
                SignedRecord(payload, bytes(64)),
                SignedRecord(b"\xc1", bytes(64)),
            ]
            for record in (*forgeries, old):
                ping = Ping(liar.record.signed, Gossip((record,)), bytes(16))
                assert await liar._prober.call(honest.record.peer, "swim/ping", ping, Ack) is not None
                assert honest.members()[victim.record.peer].record == victim.record
            # The same as the liar's own record, which only counts where the sender is its owner.
            for record in (forgeries[0], victim.record.signed):
                ping = Ping(record, Gossip(), bytes(16))
                assert await liar._prober.call(honest.record.peer, "swim/ping", ping, Ack) is not None
            assert honest.members()[victim.record.peer].record == victim.record
            refused = {reason: n for (peer, reason), n in honest.node.refusals.items()}
            assert {peer for peer, _ in honest.node.refusals} == {liar.record.peer}
            assert refused == {"forged record": 3, "malformed record": 1, "not the sender's own record": 2}
            assert honest.roster.ignored["old record"] >= 1

    run(main())


def test_messages_stay_bounded() -> None:
    async def main() -> World:
        async with cluster(40, name="n" * 64, offers=["o" * 32] * 8) as (world, members):
            await until(agreed(members, alive=40), 30)
            return world

    world = run(main())
    assert world.largest["swim/ping"] <= 8192
    assert world.largest["swim/sync"] <= 1 << 17
