"""The replicated store: merging is a join, the types are what they say, hostile authors get nowhere."""

from __future__ import annotations

import asyncio
import random
from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.store.crdt import Replica, fingerprint
from shoal.runtimes.p2p.store.delta import EMPTY, Cell, Delta, Log, Refused, Signed, contradict, read, sign
from shoal.runtimes.p2p.store.journal import Fork
from shoal.runtimes.p2p.store.sync import AntiEntropy
from shoal.runtimes.p2p.transport.memory import Hub, Memory

WHO = [Identity(bytes([i + 1]) * 32) for i in range(8)]


def replica(i: int, **how: object) -> Replica:
    return Replica(WHO[i], "s", **how)  # type: ignore[arg-type]


def own(of: Replica) -> list[Signed]:
    return [signed for _, signed in of.logs[of.identity.id].kept]


def copy(of: Replica, who: int = 7) -> Replica:
    made = replica(who)
    made.merge(of)
    return made


def op(of: Replica, kind: int, name: int, n: int) -> None:
    if kind == 0:
        of.put(f"k{name}", bytes([n]))
    elif kind == 1:
        of.drop(f"k{name}")
    elif kind == 2:
        of.add(f"s{name}", f"e{n % 3}")
    elif kind == 3:
        of.remove(f"s{name}", f"e{n % 3}")
    else:
        of.count(f"c{name}", n + 1)


OPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.integers(0, 9)), max_size=24
)


def three(ops: list[tuple[int, int, int, int]]) -> list[Replica]:
    """Three replicas; a fourth kind of step lets one hear another in between."""
    found = [replica(i) for i in range(3)]
    for who, kind, name, n in ops:
        if n == 9:
            found[who].merge(found[name])
        else:
            op(found[who], kind, name, n)
    return found


def view(of: Replica) -> object:
    return (
        {key: of.get(key) for key in of.keys()},  # noqa: SIM118
        [of.members(f"s{i}") for i in range(3)],
        [of.total(f"c{i}") for i in range(3)],
    )


@settings(max_examples=60, deadline=None)
@given(OPS)
def test_merge_is_commutative_associative_idempotent(ops: list[tuple[int, int, int, int]]) -> None:
    a, b, c = three(ops)
    joined = []
    for order in permutations([a, b, c]):
        one = replica(7)
        for part in order:
            one.merge(part)
        joined.append(one)
    right = copy(b)  # a + (b + c), against (a + b) + c above
    right.merge(c)
    left = copy(a)
    left.merge(right)
    again = copy(left)
    again.merge(left)
    again.merge(a)
    for other in [*joined, left, again]:
        assert fingerprint(other) == fingerprint(joined[0])
        assert view(other) == view(joined[0])


@settings(max_examples=40, deadline=None)
@given(OPS, st.randoms(use_true_random=False))
def test_shuffled_and_repeated_deltas_give_the_same(
    ops: list[tuple[int, int, int, int]], draw: random.Random
) -> None:
    parts = three(ops)
    deltas = [signed for part in parts if part.identity.id in part.logs for signed in own(part)] * 2
    draw.shuffle(deltas)
    got = replica(7)
    for signed in deltas:
        got.hear(signed)
    for part in parts:  # what they heard of each other, and what was replaced by a snapshot
        got.merge(part)
    other = replica(6)
    for part in reversed(parts):
        other.merge(part)
    assert fingerprint(got) == fingerprint(other) and view(got) == view(other)
    assert not got.refused


def test_eight_replicas_a_thousand_operations_partitions_and_shuffles() -> None:
    draw = random.Random(1)
    parts = [replica(i) for i in range(8)]
    counted = 0
    for step in range(1000):
        who = draw.randrange(8)
        kind, n = draw.randrange(5), draw.randrange(9)
        op(parts[who], kind, draw.randrange(3), n)
        counted += n + 1 if kind == 4 else 0
        # Two islands; each gossips within itself.
        other = draw.choice([i for i in range(8) if i % 2 == who % 2])
        if step % 3 == 0:
            deltas, _ = parts[who].beyond(parts[other].heads())
            draw.shuffle(deltas)
            for signed in deltas:
                parts[other].hear(signed)
    assert len({fingerprint(part) for part in parts}) > 1
    for _ in range(2):
        for part in parts:
            for other_part in parts:
                part.merge(other_part)
    assert all(fingerprint(part) == fingerprint(parts[0]) for part in parts)
    assert all(view(part) == view(parts[0]) for part in parts)
    assert sum(parts[0].total(f"c{i}") for i in range(3)) == counted
    # Logs stay in proportion to what they say.
    for log in parts[0].logs.values():
        assert sum(s.size for _, s in log.kept) < 4 * log.size + 3 * 4096


def test_types_agree_with_pycrdt_documents_of_one_writer() -> None:
    """The map against Yrs: one document per author, merged by taking the greatest (clock, author)."""
    pycrdt = pytest.importorskip("pycrdt")
    draw = random.Random(3)
    parts = [replica(i) for i in range(3)]
    docs = [pycrdt.Doc(client_id=1) for _ in parts]
    for clock in range(1, 201):
        i, key, value = draw.randrange(3), f"k{draw.randrange(5)}", draw.randbytes(4)
        for j in range(3):
            if j != i:
                parts[i].merge(parts[j])
        parts[i].put(key, value)
        docs[i].get("m", type=pycrdt.Map)[key] = [clock, value.hex()]
    final = copy(parts[0])
    final.merge(parts[1])
    final.merge(parts[2])
    merged: dict[str, list[object]] = {}
    for doc in docs:
        there = pycrdt.Doc()
        there.apply_update(doc.get_update())
        for key, entry in there.get("m", type=pycrdt.Map).to_py().items():
            merged[key] = max(merged.get(key, [0, ""]), entry)
    assert {key: final.get(key).hex() for key in final.keys()} == {k: v[1] for k, v in merged.items()}  # type: ignore[union-attr]  # noqa: SIM118


def test_concurrent_addition_survives_removal_and_own_removal_holds() -> None:
    a, b = replica(0), replica(1)
    a.add("s", "x")
    b.merge(a)
    b.remove("s", "x")
    a.add("s", "x")  # not seen by the remover
    a.merge(b)
    b.merge(a)
    assert a.members("s") == b.members("s") == {"x"}
    b.remove("s", "x")
    a.merge(b)
    assert a.members("s") == set()
    a.add("s", "x")
    a.remove("s", "x")
    b.merge(a)
    assert b.members("s") == set()


def test_last_writer_wins_and_deletion_is_a_write() -> None:
    a, b = replica(0), replica(1)
    a.put("k", b"1")
    b.put("k", b"2")
    winner = max((a, b), key=lambda r: r.identity.id)
    a.merge(b)
    b.merge(a)
    assert a.get("k") == b.get("k") == winner.get("k")
    a.put("k", b"3")
    b.merge(a)
    assert b.get("k") == b"3"
    b.drop("k")
    a.merge(b)
    assert a.get("k") is None and a.keys() == []


def test_nobody_writes_under_anothers_name() -> None:
    a, b = replica(0), replica(1)
    name = f"{a.identity.id}/model"
    a.put(name, b"mine")
    with pytest.raises(BadInput, match="own"):
        b.put(name, b"stolen")
    # One that does not ask its own library.
    forged = Cell("l", name, msgspec.msgpack.encode([2**53, b"stolen"]))
    log = Log()
    _, after, _ = log.changed([forged])
    b.hear(sign(b.identity, Delta("s", b.identity.id, 0, 1, EMPTY, after, (forged,))))
    a.merge(b)
    assert a.get(name) == b.get(name) is None or a.get(name) == b"mine"
    assert a.get(name) == b"mine"


def delta(who: int, since: int, upto: int, before: bytes, *cells: Cell, store: str = "s") -> Delta:
    _, after, _ = Log().changed(cells)
    return Delta(store, WHO[who].id, since, upto, before, after, cells)


CELL = Cell("c", "n", msgspec.msgpack.encode(1))


def test_what_is_unsigned_or_altered_is_refused_and_changes_nothing() -> None:
    good = delta(0, 0, 1, EMPTY, CELL)
    signed = sign(WHO[0], good)
    at = replica(1)
    flipped = bytearray(signed.payload)
    flipped[-1] ^= 1
    bad = {
        "unsigned delta": [
            Signed(signed.payload, bytes(64)),
            Signed(bytes(flipped), signed.signature),
            sign(WHO[1], good),
        ],
        "malformed delta": [Signed(b"", bytes(64)), Signed(b"\xc1" * 30, bytes(64))],
        "delta of another store": [sign(WHO[0], delta(0, 0, 1, EMPTY, CELL, store="t"))],
        "delta that leads nowhere": [
            sign(WHO[0], delta(0, 1, 1, EMPTY, CELL)),
            sign(WHO[0], delta(0, 0, 1, bytes(32), CELL)),
        ],
        "delta whose table is not the one it states": [
            sign(WHO[0], msgspec.structs.replace(good, after=bytes(32)))
        ],
        "malformed cell": [
            sign(WHO[0], delta(0, 0, 1, EMPTY, Cell(group, "i", value)))
            for group, value in [
                ("z", b""),
                ("l", b"\x01"),
                ("c", b"\xff"),
                ("a/s", b"\x02"),
                ("r/s", b""),
                ("a", b"\x01"),
            ]
        ],
    }
    for reason, those in bad.items():
        for what in those:
            before = at.refused[reason]
            with pytest.raises(Refused, match=reason):
                at.hear(what)
            assert at.refused[reason] == before + 1
            assert at.total("n") == 0
    assert at.hear(signed) and at.total("n") == 1


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=64, max_size=64))
def test_noise_is_refused(payload: bytes, signature: bytes) -> None:
    with pytest.raises(Refused):
        read(Signed(payload, signature), "s")


def test_a_fork_is_proved_spread_and_empties_its_author() -> None:
    first = sign(WHO[0], delta(0, 0, 1, EMPTY, CELL))
    second = sign(WHO[0], delta(0, 0, 1, EMPTY, Cell("c", "n", msgspec.msgpack.encode(2))))
    a, b, c = replica(1), replica(2), replica(3)
    a.hear(first)
    b.hear(second)
    c.count("n", 5)
    assert (a.total("n"), b.total("n")) == (1, 2)
    a.merge(b)  # b stands at the same version with another table: its delta is the proof
    assert WHO[0].id in a.forks and a.total("n") == 0
    for part in (c, b):
        part.merge(a)
    b.merge(c)
    a.merge(c)
    assert fingerprint(a) == fingerprint(b) == fingerprint(c)
    assert a.total("n") == 5
    assert not c.hear(first), "what a forker says counts no more"
    with pytest.raises(Refused, match="fork that is none"):
        a.hear_fork(Fork(own(c)[0], own(c)[0]))
    assert not contradict(read(first, "s"), read(own(c)[0], "s"))


def test_bounds() -> None:
    a = replica(0)
    for key in ("", "x" * 301):
        with pytest.raises(BadInput, match="key"):
            a.put(key, b"")
    with pytest.raises(BadInput, match="value"):
        a.put("k", bytes((1 << 14) + 1))
    with pytest.raises(BadInput, match="by"):
        a.count("n", 0)
    with pytest.raises(BadInput, match="per author"):
        for i in range(100):
            a.put(f"k{i}", bytes(1 << 14))
    held = len(a.keys())
    assert 20 < held < 26
    assert copy(a).keys() == a.keys(), "what was refused here was never told"
    few = replica(1, authors=1)
    few.merge(a)
    with pytest.raises(Refused, match="too many"):
        few.hear(sign(WHO[2], delta(2, 0, 1, EMPTY, CELL)))
    only = replica(1, allow={WHO[3].id})
    with pytest.raises(Refused, match="not allowed"):
        only.hear(sign(WHO[2], delta(2, 0, 1, EMPTY, CELL)))


def test_batch_is_one_delta() -> None:
    a = replica(0)
    with a.batch():
        for _ in range(5):
            a.count("n", 2)
        a.add("s", "x")
    assert len(own(a)) == 1 and a.total("n") == 10 and a.members("s") == {"x"}


def test_a_crash_makes_no_fork(tmp_path: Path) -> None:
    a = replica(0, folder=tmp_path)
    told = replica(1)
    for i in range(60):
        a.put(f"k{i % 7}", bytes([i % 256]) * 300)
        told.merge(a)
    back = replica(0, folder=tmp_path)  # as after kill -9: nothing was saved on purpose
    assert fingerprint(back) == fingerprint(a)
    path = tmp_path / "own.deltas"
    path.write_bytes(path.read_bytes() + b"\x00\x00\x01\x00torn")
    torn = replica(0, folder=tmp_path)
    torn.put("k0", b"new")
    told.merge(torn)
    assert told.get("k0") == b"new" and not told.forks
    back = replica(0, folder=tmp_path)
    back.merge(told)
    back.save()
    assert fingerprint(replica(0, folder=tmp_path)) == fingerprint(back)
    path.write_bytes(b"\x00\x00\x00\x01x")
    with pytest.raises(BadInput, match="own deltas"):
        replica(0, folder=tmp_path)


def test_anti_entropy_over_nodes() -> None:
    async def main() -> None:
        hub = Hub()
        nodes = [Node(who, [await Memory.listen(who, hub)]) for who in WHO[:4]]
        parts = [replica(i) for i in range(4)]
        gossips = []
        for i, node in enumerate(nodes):
            others = [other.id for other in nodes if other is not node]
            gossips.append(
                AntiEntropy(node, parts[i], neighbours=lambda o=others: o, draw=random.Random(i))  # type: ignore[misc]
            )
            await node.start()
            for other in nodes:
                node.learn(other.id, other.addresses())
        try:
            for i, part in enumerate(parts):
                part.count("n", i + 1)
                part.put(f"big{i}", bytes(1 << 14))
            for _ in range(40):
                for gossip in gossips:
                    await gossip.once()
                if len({fingerprint(part) for part in parts}) == 1:
                    break
            assert all(part.total("n") == 10 and len(part.keys()) == 4 for part in parts)
            # More than one message holds, one way and the other.
            for part in parts[:2]:
                for i in range(20):
                    part.put(f"more{i}", random.Random(i).randbytes(1 << 14))
            assert await gossips[0].sync(nodes[1].id) > 0
            assert fingerprint(parts[0]) == fingerprint(parts[1])
            assert not any(node.refusals for node in nodes)
            # A peer that passes on what it never checked is counted, and nothing changes.
            before = fingerprint(parts[1])
            log = parts[0].logs[WHO[0].id]
            log.kept.append((log.kept[-1][0], Signed(log.kept[-1][1].payload, bytes(64))))
            log.version += 1
            await gossips[0].sync(nodes[1].id)
            assert nodes[1].refusals[WHO[0].id, "unsigned delta"] > 0
            assert fingerprint(parts[1]) == before
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())
