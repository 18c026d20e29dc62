"""Rates, deadlines and bans: closed forms."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import BadInput
from shoal.runtimes.p2p import conduct
from shoal.runtimes.p2p.book import Book
from shoal.runtimes.p2p.conduct import Conduct, Standing
from shoal.runtimes.p2p.limits import Limits, RoundTrip, TokenBucket


def test_round_trip_follows_rfc_6298() -> None:
    trip, limits = RoundTrip(), Limits(floor_s=0.01, first_s=5.0, ceiling_s=60.0)
    assert trip.deadline(limits) == 5.0
    trip.saw(0.8)
    assert (trip.smooth, trip.deviation) == (0.8, 0.4)
    assert trip.deadline(limits) == pytest.approx(0.8 + 4 * 0.4)
    trip.saw(1.6)  # deviation first, with the old mean, then the mean
    assert trip.deviation == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)
    assert trip.smooth == pytest.approx(0.875 * 0.8 + 0.125 * 1.6)


def test_misses_double_the_deadline_until_an_answer_comes() -> None:
    trip, limits = RoundTrip(), Limits(floor_s=1.0, first_s=2.0, ceiling_s=30.0)
    seen = []
    for _ in range(6):
        seen.append(trip.deadline(limits))
        trip.missed()
    assert seen == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    trip.saw(0.1)
    assert trip.deadline(limits) == 1.0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_deadlines_stay_between_floor_and_ceiling(samples: list[float]) -> None:
    trip, limits = RoundTrip(), Limits(floor_s=0.5, ceiling_s=40.0)
    for sample in samples:
        trip.saw(sample)
        assert 0.5 <= trip.deadline(limits) <= 40.0
        assert trip.smooth is not None and min(samples) <= trip.smooth * (1 + 1e-9)
        assert trip.smooth <= max(samples) * (1 + 1e-9)


def test_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 3.0, 0.0)
    assert [bucket.ask(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.ask(0.0) == pytest.approx(0.1)
    assert bucket.ask(0.1) == 0.0
    assert bucket.charge(20, 10.1) == pytest.approx((20 - 3) / 10)  # no more than the burst was saved up


@given(st.lists(st.floats(0.0, 1.0), max_size=60))
def test_bucket_never_grants_more_than_burst_and_rate(steps: list[float]) -> None:
    bucket, now, granted = TokenBucket(5.0, 4.0, 0.0), 0.0, 0
    for step in steps:
        now += step
        granted += bucket.ask(now) == 0.0
    assert granted <= 4 + 5 * now + 1e-6


def test_bans_come_after_the_strikes_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(conduct.time, "monotonic", lambda: now[0])
    standing = Standing(Limits(strikes=3.0, forgiven_per_s=1.0, ban_s=8.0, ban_most_s=20.0))
    lengths = []
    for _ in range(3):
        assert [standing.strike(1.0) for _ in range(3)] == [False, False, True]
        lengths.append(standing.banned)
        now[0] += standing.banned
        assert not standing.banned
    assert lengths == [8.0, 16.0, 20.0]
    for _ in range(50):  # slower than they are forgiven
        now[0] += 1.5
        assert not standing.strike(1.0)


def test_what_is_remembered_of_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "REASONS", 100)
    monkeypatch.setattr(conduct, "REMEMBERED", 64)
    table = Conduct(Limits(strikes=2.0, forgiven_per_s=0.0))
    assert [table.refuse("bad", "x", 1.0) for _ in range(2)] == [False, True]
    for number in range(1000):
        table.refuse(f"stranger {number}", "malformed", 0.0)
        if number % 10 == 0:
            assert table.banned("bad")  # who is banned is not pushed out by who is merely new
    assert len(table.refusals) <= 101
    assert sum(table.refusals.values()) == 1002
    assert len(table._standings) <= 64


def test_requests_wait_for_room() -> None:
    async def check() -> None:
        standing = Standing(Limits(held=1 << 16))
        await standing.hold(1 << 17)  # alone, one larger than the room may pass
        second = asyncio.create_task(standing.hold(10))
        await asyncio.sleep(0.01)
        assert not second.done()
        standing.let_go(1 << 17)
        await asyncio.wait_for(second, 1.0)

    asyncio.run(check())


def test_dials_are_spaced_out_until_an_address_is_new() -> None:
    book = Book()
    assert book.wait("a") == 0
    waits = []
    for _ in range(10):
        book.failed("a")
        waits.append(book.wait("a"))
    assert all(later > sooner for sooner, later in pairwise(waits[:7]))
    assert max(waits) <= 5.0
    book.learn("a", ["tcp://1.2.3.4:5"])
    assert book.wait("a") == 0 and book.known("a") == ("tcp://1.2.3.4:5",)


@pytest.mark.parametrize(
    ("field", "value"), [("first_s", 100.0), ("calls_per_s", 0.0), ("ban_most_s", 1.0)]
)
def test_limits_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=field):
        Limits(**{field: value})
