"""The member table without a network: the order of records, and who can change what."""

from __future__ import annotations

import random
from collections import Counter
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack, structs

from shoal.core import BadInput
from shoal.runtimes.p2p.gossip import BYTES, DOUBTS, RECORDS, Doubt, Gossip, Rumours
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.pace import MOST, Pace
from shoal.runtimes.p2p.records import (
    LAST_SEQUENCE,
    PeerRecord,
    Record,
    RefusedRecord,
    SignedRecord,
    newest,
    read,
    sign,
)
from shoal.runtimes.p2p.roster import BURST, Roster, State

RUN = "run"
KEYS = [Identity(bytes([number]) * 32) for number in range(1, 9)]
ME, OTHERS = KEYS[0], KEYS[1:]


def record(who: Identity, sequence: int, name: str = "", **more) -> Record:
    return sign(who, PeerRecord(who.id, RUN, sequence, (f"memory://{who.id[:8]}",), name, **more))


def roster(**options) -> tuple[Roster, Counter]:
    refused: Counter = Counter()

    def refuse(peer: str, reason: str) -> None:
        refused[peer, reason] += 1

    said = PeerRecord(ME.id, RUN, 1, ("memory://me",))
    learn = options.pop("learn", lambda peer, addresses: None)
    return Roster(ME, said, refuse=refuse, learn=learn, draw=random.Random(0), **options), refused


# A pool of records of few peers with few numbers, so that equal numbers (equivocations) are common.
POOL = [
    record(who, sequence, name, left=left)
    for who in OTHERS[:3]
    for sequence in (1, 2, 3)
    for name in ("", "a", "b")
    for left in (False, True)
]
pooled = st.sampled_from(POOL)
of_one = st.sampled_from([one for one in POOL if one.peer == OTHERS[0].id])


@given(of_one, of_one, of_one)
def test_the_newest_record_is_a_join(a: Record, b: Record, c: Record) -> None:
    assert newest(a, b) == newest(b, a)
    assert newest(newest(a, b), c) == newest(a, newest(b, c))
    assert newest(a, a) == a
    assert newest(a, b) in (a, b)


def test_records_of_two_peers_have_no_order() -> None:
    with pytest.raises(ValueError, match="no order"):
        newest(record(OTHERS[0], 1), record(OTHERS[1], 1))


@given(st.lists(pooled, max_size=12), st.randoms(use_true_random=False), st.data())
@settings(deadline=None)
def test_the_order_and_repetition_of_what_is_heard_do_not_matter(
    heard: list[Record], shuffle: random.Random, data: st.DataObject
) -> None:
    """Whatever arrives in whatever order, peers that heard the same hold the same records.

    Newcomers that have left already are not taken in, so each peer is heard of before.
    """
    again = [*heard, *data.draw(st.lists(st.sampled_from(heard), max_size=4) if heard else st.just([]))]
    shuffle.shuffle(again)
    tables = []
    for order in (heard, again):
        one, _ = roster()
        for who in OTHERS[:3]:
            one.hear(record(who, 1).signed, who.id)
        for item in order:
            one.hear(item.signed, item.peer)
            for _ in range(4):
                one.tick()  # credit for more records
        tables.append({peer: row.record for peer, row in one.members().items()})
    assert tables[0] == tables[1]
    for who in OTHERS[:3]:
        everything = [item for item in heard if item.peer == who.id] + [record(who, 1)]
        assert tables[0][who.id] == reduce(newest, everything)


@given(st.binary(max_size=200), st.binary(min_size=64, max_size=64))
@settings(max_examples=200)
def test_arbitrary_bytes_are_refused_and_counted(payload: bytes, signature: bytes) -> None:
    one, refused = roster()
    assert not one.hear(SignedRecord(payload, signature), OTHERS[0].id)
    assert set(one.members()) == {ME.id}
    assert sum(refused.values()) == 1


@pytest.mark.parametrize("at", range(0, 160, 7))
def test_a_flipped_bit_is_refused(at: int) -> None:
    good = record(OTHERS[0], 5, "name").signed
    payload = bytearray(good.payload)
    payload[at % len(payload)] ^= 1
    one, refused = roster()
    assert not one.hear(SignedRecord(bytes(payload), good.signature), OTHERS[1].id)
    assert set(one.members()) == {ME.id}
    assert {peer for peer, _ in refused} == {OTHERS[1].id}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "other"}, "record of another run"),
        ({"name": "\x1b[2J"}, "malformed record"),
        ({"name": "x" * 65}, "malformed record"),
        ({"addresses": ("a",) * 17}, "malformed record"),
        ({"sequence": 0}, "malformed record"),
        ({"sequence": 2**63}, "malformed record"),
        ({"peer": "00" * 32}, "malformed record"),
        ({"peer": OTHERS[1].id}, "forged record"),
    ],
)
def test_what_is_well_signed_must_also_be_well_formed(change: dict, reason: str) -> None:
    payload = msgpack.encode(structs.replace(record(OTHERS[0], 1).said, **change))
    with pytest.raises(RefusedRecord, match=reason):
        read(SignedRecord(payload, OTHERS[0].sign("record", payload)), RUN)


@pytest.mark.parametrize("change", [{"name": "\x1b"}, {"name": "x" * 65}, {"peer": OTHERS[1].id}])
def test_nobody_signs_what_others_would_refuse(change: dict) -> None:
    with pytest.raises(BadInput):
        sign(OTHERS[0], structs.replace(record(OTHERS[0], 1).said, **change))


def test_a_signature_for_another_purpose_does_not_count() -> None:
    payload = record(OTHERS[0], 1).signed.payload
    with pytest.raises(RefusedRecord, match="forged"):
        read(SignedRecord(payload, OTHERS[0].sign("answer", payload)), RUN)


def test_suspicion_death_and_return() -> None:
    one, refused = roster()
    who = OTHERS[0]
    one.hear(record(who, 1).signed, who.id)
    one.fail(who.id, 1)
    assert one.members()[who.id].state is State.SUSPECT
    for _ in range(one.patience - 1):
        one.tick()
    assert one.members()[who.id].state is State.SUSPECT
    one.tick()
    assert one.members()[who.id].state is State.DEAD
    assert not one.hear(record(who, 1).signed, who.id)  # the same statement again proves nothing
    assert one.members()[who.id].state is State.DEAD
    assert one.hear(record(who, 2).signed, OTHERS[1].id)
    assert one.members()[who.id].state is State.ALIVE
    assert one.members()[who.id].incarnation == 2
    one.fail(who.id, 1)  # a probe that began before it refuted
    assert one.members()[who.id].state is State.ALIVE
    assert not refused


def test_what_it_says_itself_clears_a_member_but_not_one_that_left() -> None:
    one, _ = roster()
    who = OTHERS[0]
    one.hear(record(who, 1).signed, who.id)
    one.fail(who.id, 1)
    assert one.contact(who.id)
    assert one.members()[who.id].state is State.ALIVE
    one.hear(record(who, 2, left=True).signed, OTHERS[1].id)
    assert one.members()[who.id].state is State.LEFT
    assert not one.contact(who.id)
    assert one.members()[who.id].state is State.LEFT
    one.hear(record(who, 3).signed, OTHERS[1].id)
    assert one.members()[who.id].state is State.ALIVE


def test_a_rumour_of_death_only_says_whom_to_probe() -> None:
    one, _ = roster()
    who, other = OTHERS[0], OTHERS[1]
    for key in (who, other):
        one.hear(record(key, 5).signed, key.id)
    assert one.heed(Doubt(who.id, 5), other.id)
    assert not one.heed(Doubt(who.id, 4), other.id)
    assert not one.heed(Doubt(who.id, 6), other.id)
    assert not one.heed(Doubt(OTHERS[2].id, 5), other.id)
    assert one.members()[who.id].state is State.ALIVE


def test_only_the_present_number_is_refuted_and_once_a_period() -> None:
    one, _ = roster()
    for sequence in (0, 2, 2**62):
        one.heed(Doubt(ME.id, sequence), OTHERS[0].id)
    assert one.own.sequence == 1
    for sequence in range(1, 100):
        one.heed(Doubt(ME.id, sequence), OTHERS[0].id)
    assert one.own.sequence == 2
    one.tick()
    assert one.own.sequence == 3
    one.tick()
    assert one.own.sequence == 3


def test_an_own_record_from_an_earlier_life_is_outdone() -> None:
    one, refused = roster()
    assert one.hear(record(ME, 77).signed, OTHERS[0].id)
    assert one.own.sequence == 78
    assert not one.hear(record(ME, 77).signed, OTHERS[0].id)
    assert not refused
    one.hear(record(ME, LAST_SEQUENCE).signed, OTHERS[0].id)
    assert one.own.sequence == 78


def test_equivocation_is_noticed_and_settled_alike_everywhere() -> None:
    pair = [record(OTHERS[0], 4, name) for name in ("one", "two")]
    kept = []
    for order in (pair, pair[::-1]):
        one, refused = roster()
        for item in order:
            one.hear(item.signed, OTHERS[1].id)
        assert refused == {(OTHERS[0].id, "equivocation"): 1}
        kept.append(one.members()[OTHERS[0].id].record)
    assert kept[0] == kept[1]


def test_a_flood_of_new_records_of_one_peer_is_bounded() -> None:
    one, refused = roster()
    for sequence in range(1, 60):
        one.hear(record(OTHERS[0], sequence).signed, OTHERS[0].id)
    assert one.members()[OTHERS[0].id].incarnation == BURST
    assert refused[OTHERS[0].id, "too many records"] == 59 - BURST
    one.tick()
    assert one.hear(record(OTHERS[0], 60).signed, OTHERS[1].id)


def test_a_full_table_drops_the_dead_then_hearsay_for_who_calls_itself() -> None:
    one, _ = roster(capacity=3)
    for who in OTHERS[:3]:
        assert one.hear(record(who, 1).signed, OTHERS[0].id)
    one.contact(OTHERS[0].id)
    one.contact(OTHERS[1].id)
    assert not one.hear(record(OTHERS[3], 1).signed, OTHERS[0].id)  # hearsay pushes nobody out,
    assert one.hear(record(OTHERS[3], 1).signed, OTHERS[3].id)  # who calls itself pushes hearsay out,
    assert one.get(OTHERS[2].id) is None
    one.contact(OTHERS[3].id)
    assert not one.hear(record(OTHERS[4], 1).signed, OTHERS[4].id)  # but nobody who has called itself,
    one.hear(record(OTHERS[1], 2, left=True).signed, OTHERS[1].id)
    assert one.hear(record(OTHERS[4], 1).signed, OTHERS[0].id)  # unless it has gone.
    assert set(one.digest()) == {OTHERS[0].id, OTHERS[3].id, OTHERS[4].id}
    assert one.ignored["no room"] == 2


def test_a_doubter_has_only_so_much_credit() -> None:
    one, _ = roster()
    for who in OTHERS:
        one.hear(record(who, 1).signed, who.id)
    heeded = sum(one.heed(Doubt(OTHERS[1].id, 1), OTHERS[0].id) for _ in range(100))
    assert heeded == len(OTHERS)
    assert one.heed(Doubt(OTHERS[1].id, 1), OTHERS[2].id)
    one.tick()
    assert sum(one.heed(Doubt(OTHERS[1].id, 1), OTHERS[0].id) for _ in range(100)) == 1


def test_gossip_is_bounded_and_each_rumour_told_a_few_times() -> None:
    one, _ = roster(capacity=500)
    keys = [Identity(number.to_bytes(32, "big")) for number in range(1, 121)]
    for who in keys:
        said = PeerRecord(who.id, RUN, 1, ("memory://" + "x" * 180,) * 4, "n" * 64)
        one.hear(sign(who, said).signed, who.id)
        if who.secret[-1] % 2:
            one.fail(who.id, 1)
    told: Counter = Counter()
    for turn in range(3000):
        gossip = one.gossip(keys[turn % 120].id)
        assert len(gossip.records) <= RECORDS
        assert len(gossip.doubts) <= DOUBTS
        assert sum(len(item.payload) for item in gossip.records) <= BYTES
        told.update(item.payload for item in gossip.records)
    assert len(told) == 121
    assert set(told.values()) == {3 * one.spread}
    assert one.gossip(keys[1].id) == Gossip()


def test_who_is_behind_or_doubted_hears_it_first() -> None:
    one, _ = roster()
    who = OTHERS[0]
    one.hear(record(who, 5).signed, who.id)
    one.fail(who.id, 5)
    gossip = one.gossip(who.id, sequence=3)
    assert gossip.records[0] == record(who, 5).signed
    assert gossip.doubts[0] == Doubt(who.id, 5)


def test_reminding_does_not_crowd_out_news() -> None:
    rumours = Rumours(random.Random(0))
    content = {who.id: record(who, 1).signed for who in KEYS}
    rumours.remind("record", KEYS[0].id, 6)
    rumours.add("record", KEYS[1].id)
    picked = rumours.pick(6, lambda kind, peer: content[peer], Gossip())
    assert picked.records == (content[KEYS[1].id], content[KEYS[0].id])
    rumours.remind("record", KEYS[1].id, 6)
    assert [len(rumours.pick(6, lambda kind, peer: content[peer], Gossip()).records) for _ in range(7)] == [
        1, 1, 1, 1, 1, 0, 0,
    ]  # fmt: skip


def test_tables_are_compared_within_the_allow_list_and_the_room() -> None:
    one, _ = roster(allow=[who.id for who in KEYS[:4]], capacity=2)
    one.hear(record(OTHERS[0], 3).signed, OTHERS[0].id)
    have = {OTHERS[0].id: 4, OTHERS[1].id: 1, OTHERS[5].id: 1, ME.id: 9}
    assert set(one.lacking(have, 10)) == {OTHERS[0].id, OTHERS[1].id, ME.id}
    assert len(one.lacking(have, 2)) == 2
    assert one.newer({}, 10, 10_000) == (record(OTHERS[0], 3).signed,)
    assert one.newer({OTHERS[0].id: 3}, 10, 10_000) == ()
    assert one.newer({}, 10, 50) == ()
    one.hear(record(OTHERS[0], 4, left=True).signed, OTHERS[0].id)
    assert one.newer({}, 10, 10_000) == ()
    assert one.newer({OTHERS[0].id: 3}, 10, 10_000) == (record(OTHERS[0], 4, left=True).signed,)


def test_deadlines_follow_round_trips() -> None:
    pace = Pace(1.0)
    assert pace.deadline("a") == 1.0
    first = pace.patience("a")
    pace.missed("a")
    assert pace.patience("a") == 2 * first
    for _ in range(100):
        pace.saw("a", 0.05)
    assert pace.deadline("a") == 1 / 8  # no shorter, however steady the peer
    assert pace.patience("a") == pace.period == 1.0
    for _ in range(100):
        pace.saw("a", 2.0)
    assert 2.0 < pace.deadline("a") < 2.2
    assert pace.period >= 4 * 2.0
    for _ in range(100):
        pace.saw("a", 1e6)
    assert pace.patience("a") <= MOST
    pace.forget("a")
    assert pace.deadline("a") == pace.period == 1.0
