"""Blobs: whole, resumed, once, and only what was wanted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from nodes import nodes, run, until
from transports import WAYS

from shoal.core import BadInput
from shoal.runtimes.p2p import receiver
from shoal.runtimes.p2p.blob import Answer, Claim, Offer, Tagger, Verdict
from shoal.runtimes.p2p.frames import Refused
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transfer import BlobRefused, Receiver, send_blob
from shoal.runtimes.p2p.transport.base import TransportError

each_way = pytest.mark.parametrize("way", sorted(WAYS))
MB = 1 << 20


class Inbox:
    """A receiver that keeps everything."""

    def __init__(
        self, node: Node, limit: int = 64 * MB, accept: Callable[..., bool] | None = None, **more: Any
    ):
        self.got: list[tuple[str, bytes, bytes]] = []
        self.unlike: list[tuple[str, bytes]] = []
        self.receiver = Receiver(
            node,
            accept or (lambda peer, key, size: True),
            limit,
            self._done,
            equivocation=lambda peer, key: self.unlike.append((peer, key)),
            **more,
        )

    async def _done(self, peer: str, key: bytes, content: memoryview) -> None:
        self.got.append((peer, key, bytes(content)))


@each_way
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 16, (1 << 16) + 1, 300_000, 3 * MB + 17])
def test_what_arrives_is_what_was_sent(way: str, size: int) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            inbox = Inbox(b)
            data = random.Random(size).randbytes(size)
            cuts = sorted(random.Random(1).choices(range(size + 1), k=3))
            parts = [data[i:j] for i, j in zip([0, *cuts], [*cuts, size], strict=True)]
            told: list[tuple[int, int]] = []
            sent = await send_blob(a, b.id, b"key", parts, progress=lambda *now: told.append(now))
            assert inbox.got == [(a.id, b"key", data)] and sent == size
            assert told[-1] == (size, size) and told == sorted(told)
            assert await send_blob(a, b.id, b"key", parts) == 0  # it is there already
            assert len(inbox.got) == 1 and not b.refusals

    run(check)


def test_any_contiguous_buffer_is_sent_as_it_is() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b)
            matrix = np.arange(40_000, dtype=np.float64).reshape(200, 200)
            await send_blob(a, b.id, b"m", [matrix, b"and", bytearray(b"more"), memoryview(b"")])
            assert inbox.got[0][2] == matrix.tobytes() + b"andmore"
            for key in (b"", bytes(129)):
                with pytest.raises(BadInput, match="key"):
                    await send_blob(a, b.id, key, [b"x"])

    run(check)


@each_way
def test_it_goes_on_where_the_connection_broke(way: str) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            inbox = Inbox(b)
            data = random.Random(0).randbytes(12 * MB)
            marks = [2 * MB, 5 * MB, 9 * MB]

            def cut(sent: int, size: int) -> None:
                if marks and sent >= marks[0]:
                    marks.pop(0)
                    side = (a, b)[len(marks) % 2]
                    WAYS[way].cut(next(iter(side._current.values())).connection)

            sent = await send_blob(a, b.id, b"model", [data[: 7 * MB], data[7 * MB :]], progress=cut)
            assert not marks and inbox.got == [(a.id, b"model", data)]
            # Each break costs at most what was under way; starting over would cost 2 + 5 + 9 MB.
            assert len(data) <= sent < len(data) + 10 * MB
            assert not inbox.receiver._partial and not inbox.receiver._held

    run(check)


@each_way
def test_many_at_once_in_both_directions(way: str) -> None:
    async def check() -> None:
        async with nodes(way, 3) as peers:
            inboxes = {node.id: Inbox(node) for node in peers}
            draw = random.Random(3)
            blobs = {
                (one.id, other.id, bytes([i])): draw.randbytes(draw.choice([100, 70_000, 900_000]))
                for one in peers
                for other in peers
                for i in range(12)
                if one is not other
            }
            by_id = {node.id: node for node in peers}
            await asyncio.gather(
                *(send_blob(by_id[one], other, key, [data]) for (one, other, key), data in blobs.items())
            )
            got = {
                (one, other, key): data for other, inbox in inboxes.items() for one, key, data in inbox.got
            }
            assert got == blobs
            assert sum(len(inbox.got) for inbox in inboxes.values()) == len(blobs)

    run(check, 40)


@pytest.mark.parametrize("size", [100, 200_000])
def test_the_same_key_from_two_tasks_is_delivered_once(size: int) -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b)
            await asyncio.gather(*(send_blob(a, b.id, b"k", [bytes(size)]) for _ in range(5)))
            assert inbox.got == [(a.id, b"k", bytes(size))] and not b.refusals

    run(check)


@each_way
@pytest.mark.parametrize(
    ("first", "second"), [(100, 100), (100, 300_000), (300_000, 100), (300_000, 300_000)]
)
def test_other_content_under_an_old_key_is_refused_and_told(way: str, first: int, second: int) -> None:
    async def check() -> None:
        async with nodes(way) as (a, b):
            inbox = Inbox(b)
            await send_blob(a, b.id, b"key", [b"\x01" * first])
            with pytest.raises(BlobRefused, match="conflict"):
                await send_blob(a, b.id, b"key", [b"\x02" * second])
            assert inbox.got == [(a.id, b"key", b"\x01" * first)]
            assert inbox.unlike == [(a.id, b"key")] and b.refusals == {(a.id, "equivocation"): 1}
            await send_blob(a, b.id, b"key", [b"\x01" * first])  # the true one may be repeated
            assert len(inbox.unlike) == 1

    run(check)


@pytest.mark.parametrize("size", [100, 300_000])
def test_what_is_not_wanted_or_too_large_is_not_taken(size: int) -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b, limit=size, accept=lambda peer, key, size: key != b"no")
            with pytest.raises(BlobRefused):
                await send_blob(a, b.id, b"no", [bytes(size)])
            with pytest.raises(BlobRefused):
                await send_blob(a, b.id, b"yes", [bytes(size + 1)])
            await send_blob(a, b.id, b"yes", [bytes(size)])
            assert len(inbox.got) == 1
            assert b.refusals == {(a.id, "blob not wanted"): 1, (a.id, "blob too large"): 1}
            with pytest.raises(BlobRefused):  # there is nobody to take it
                await send_blob(b, a.id, b"yes", [bytes(size)])

    run(check)


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_handler_may_refuse_and_may_fail(size: int) -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            tries = 0

            async def done(peer: str, key: bytes, content: memoryview) -> None:
                nonlocal tries
                tries += 1
                if key == b"bad":
                    raise Refused("not a model")
                if tries < 4:
                    raise OSError("disk full")

            Receiver(b, lambda *blob: True, MB, done)
            with pytest.raises(BlobRefused):
                await send_blob(a, b.id, b"bad", [bytes(size)])
            assert b.refusals == {(a.id, "not a model"): 1} and tries == 1
            sent = await send_blob(a, b.id, b"good", [bytes(size)])
            assert tries == 4 and sent == size  # tried again, without sending it again

    run(check)


def test_the_room_for_unfinished_blobs_is_bounded_and_shared() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b, limit=MB, budget=2 * MB)
            most = 0

            def look(sent: int, size: int) -> None:
                nonlocal most
                most = max(most, sum(inbox.receiver._held.values()))

            await asyncio.gather(
                *(send_blob(a, b.id, bytes([i]), [bytes([i]) * MB], progress=look) for i in range(8))
            )
            assert sorted(key for _, key, _ in inbox.got) == [bytes([i]) for i in range(8)]
            assert MB <= most <= 2 * MB

    run(check)


def test_abandoned_blobs_give_way() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b, limit=4 * MB, budget=4 * MB)
            for key in (b"1", b"2", b"3"):
                async with await a.open(b.id, "blob") as channel:
                    await channel.send(Offer(key, 3 * MB))
                    assert (await channel.receive(Verdict)).answer == Answer.GO
                    await channel.write(bytes(1000))
                await until(lambda: all(p.channel is None for p in inbox.receiver._partial.values()))
                assert len(inbox.receiver._partial) == 1
            await send_blob(a, b.id, b"4", [bytes(4 * MB)])
            assert not inbox.receiver._partial and len(inbox.got) == 1

    run(check)


def test_a_blob_put_together_from_unlike_attempts_is_found_out() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b)
            async with await a.open(b.id, "blob") as channel:
                await channel.send(Offer(b"k", 2 * MB))
                await channel.receive(Verdict)
                await channel.write(b"\xff" * MB)  # of an earlier life, say
                await until(lambda: next(iter(inbox.receiver._partial.values())).offset == MB)
            sent = await send_blob(a, b.id, b"k", [bytes(2 * MB)])
            assert inbox.got == [(a.id, b"k", bytes(2 * MB))]
            assert sent == 3 * MB  # the rest, then all of it

    run(check)


def test_a_sender_that_does_not_know_the_content_cannot_finish() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b)
            for tag in (bytes(16), None):
                async with await a.open(b.id, "blob") as channel:
                    await channel.send(Offer(b"k", 100_000))
                    verdict = await channel.receive(Verdict)
                    tagger = Tagger(verdict.secret)
                    tagger.feed(bytes(100_000))
                    await channel.write(bytes(100_000))
                    await channel.send(Claim(tag or tagger.tag()))
                    answer = (await channel.receive(Verdict)).answer
                    assert answer == (Answer.DAMAGED if tag else Answer.DONE)
            assert len(inbox.got) == 1

    run(check)


def test_giving_up_when_nothing_goes_on() -> None:
    async def check() -> None:
        async with nodes("memory") as (a, b):
            began = time.monotonic()
            with pytest.raises(TransportError):
                await send_blob(a, "ab" * 31 + "cd", b"k", [b"x"], patience=0.3)
            assert 0.25 < time.monotonic() - began < 5
            Inbox(b, accept=lambda *blob: True)
            await b.stop()
            with pytest.raises(TransportError):
                await send_blob(a, b.id, b"k", [bytes(MB)], patience=0.2)

    run(check)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "KEYS", 8)

    async def check() -> None:
        async with nodes("memory") as (a, b):
            inbox = Inbox(b)
            for i in range(20):
                await send_blob(a, b.id, bytes([i]), [b"x"])
            assert len(inbox.receiver._finished[a.id]) == 8
            inbox.receiver.forget(a.id)
            assert not inbox.receiver._finished

    run(check)


def test_the_tag_is_gmac() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = random.Random(9).randbytes(100_001)
    tagger = Tagger(b"0123456789abcdef")
    for start in range(0, len(data), 999):
        tagger.feed(data[start : start + 999])
    assert tagger.tag() == AESGCM(b"0123456789abcdef").encrypt(bytes(12), b"", data)


def test_offers_are_read_strictly() -> None:
    for bad in (Offer(b"", 3), Offer(bytes(129), 3), Offer(b"k", -1), Offer(b"k", 2**60)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=Offer)
