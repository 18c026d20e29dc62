"""The exchange between peers: what is taken, what is refused, who is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nodes import nodes, run, until

from shoal.core import RunFailed
from shoal.runtimes.p2p.debtor import TRIAL, Debtor
from shoal.runtimes.p2p.desk import Desk, Patience
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.tempo import AHEAD

RUN = b"12345678"


def desk(made: list[Node], here: int, **patience: Any) -> Desk:
    seats = {node.id: i for i, node in enumerate(made)}
    told = Patience(**{"least_s": 0.01, "most_s": 5.0, **patience})
    return Desk(
        made[here], RUN, here, 1 << 16, told,
        holder=lambda seat: made[seat].id, seat=seats.get, gone=lambda seat: False,
    )  # fmt: skip


def test_parcels_are_swapped_by_tick_and_call() -> None:
    async def test() -> None:
        async with nodes("memory", 2) as made:
            one, two = desk(made, 0), desk(made, 1)
            for tick in (0, 1):
                await asyncio.gather(one.begin(tick), two.begin(tick))
                for call in (0, 1):
                    mine, theirs = bytes([tick, call, 0]), bytes([tick, call, 1])
                    got, back = await asyncio.gather(
                        one.swap(tick, call, {1: [mine]}, [1]), two.swap(tick, call, {0: [theirs]}, [0])
                    )
                    assert bytes(got[1]) == theirs
                    assert bytes(back[0]) == mine
            await asyncio.gather(one.close(), two.close())

    run(test)


def test_late_and_early_parcels_cost_their_sender_nothing() -> None:
    async def test() -> None:
        async with nodes("memory", 2) as made:
            one, two = desk(made, 0), desk(made, 1)
            await two.begin(100)
            for tick in [*range(60), 100 + AHEAD + 1]:
                await one.begin(tick)
                await one.swap(tick, 0, {1: [b"x" * 100]}, [])
                await one.flush(5)
            refused = two.node.refusals
            assert refused[made[0].id, "late"] == 60
            assert refused[made[0].id, "ahead"] == 1
            assert not two.node.banned(made[0].id)
            assert two.tempo.frontier([0]) == 59  # a parcel for a tick far ahead is no progress
            await asyncio.gather(one.close(), two.close())

    run(test)


def test_what_lies_ahead_is_bounded() -> None:
    async def test() -> None:
        async with nodes("memory", 2) as made:
            one, two = desk(made, 0), desk(made, 1)
            await asyncio.gather(one.begin(0), two.begin(0))
            for call in range(12):
                await one.swap(0, call, {1: [bytes(1 << 15)]}, [])
                await one.flush(5)
            held = sum(len(data) for box in two._box.values() for _, data in box.values())
            assert held == 4 << 16
            assert two.node.refusals[made[0].id, "too much ahead"] == 4
            await asyncio.gather(one.close(), two.close())

    run(test)


def test_nobody_waits_for_what_cannot_come() -> None:
    async def test() -> None:
        async with nodes("memory", 2) as made:
            one, two = desk(made, 0), desk(made, 1)
            await asyncio.gather(one.begin(3), two.begin(4))
            await two.swap(4, 0, {0: [b"later"]}, [])
            await until(lambda: one.holds(1, 4))
            async with asyncio.timeout(1):
                assert await one.swap(3, 0, {}, [1]) == {}
            await asyncio.gather(one.close(), two.close())

    run(test)


def test_a_strict_peer_fails_where_a_patient_one_goes_on() -> None:
    async def test() -> None:
        async with nodes("memory", 2) as made:
            strict, lenient = desk(made, 0, strict=True, most_s=0.2), desk(made, 1, most_s=0.2)
            await asyncio.gather(strict.begin(0), lenient.begin(0))
            with pytest.raises(RunFailed, match="peer 1 sent nothing for tick 0"):
                await strict.swap(0, 0, {}, [1])
            assert await lenient.swap(0, 0, {}, [0]) == {}
            await asyncio.gather(strict.close(), lenient.close())

    run(test)


def test_trust_is_lost_and_won_by_a_few_in_a_row() -> None:
    debtor = Debtor()
    for _ in range(2):
        debtor.miss(3)
    assert debtor.trusted
    debtor.miss(3)
    assert not debtor.trusted
    for _ in range(2):
        debtor.hit(0.1, 3)
    assert not debtor.trusted
    debtor.hit(0.1, 3)
    assert debtor.trusted
    for _ in range(TRIAL - 1):
        debtor.miss(3)
    assert debtor.on_trial
    debtor.hit(0.1, 3)
    assert debtor.trusted


def test_one_liar_moves_nobody() -> None:
    async def test() -> None:
        async with nodes("memory", 4) as made:
            mine = desk(made, 0)
            for seat, tick in ((1, 10), (2, 11), (3, 1_000_000)):
                mine.tempo.heard(seat, tick)
            assert mine.tempo.frontier([1, 2, 3]) == 11
            assert mine.tempo.target(11, [1, 2, 3]) == (11, 11)
            assert mine.tempo.target(5, [1, 2, 3]) == (11, 12)
            await mine.close()

    run(test)
