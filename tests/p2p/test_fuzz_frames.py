"""Whatever bytes come, they are refused and counted; the node goes on as it was."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.bench.fuzz import fuzz_node
from shoal.bench.mutate import mutate
from shoal.runtimes.p2p.blob import Offer, Verdict, Whole
from shoal.runtimes.p2p.frames import Malformed, Type, decode, encode, pack, read_body, read_head, unsqueeze
from shoal.runtimes.p2p.link import Control, Greeting, Ping
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transport.base import Broken, Stream


class Bytes(Stream):
    """A stream that holds given bytes, and notes the most that was asked for at once."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0

    async def read(self, most: int = 1 << 18) -> bytes:
        self.asked = max(self.asked, most)
        data, self.data = self.data[:most], self.data[most:]
        return data

    async def write(self, data: Any) -> None:
        raise AssertionError("nothing is written")

    async def finish(self) -> None:
        raise AssertionError("nothing is written")

    def abort(self) -> None:
        self.data = b""


def read_frame(data: bytes, limit: int) -> tuple[bytes, int]:
    stream = Bytes(data)

    async def read() -> bytes:
        return await read_body(stream, await read_head(stream), limit)

    return asyncio.run(read()), stream.asked


@given(st.binary(max_size=5000), st.sampled_from([b"", b"kind"]))
def test_frames_come_back_as_they_were(body: bytes, kind: bytes) -> None:
    frame = pack(Type.CALL, body, kind=kind)
    assert len(frame) <= 16 + len(kind) + len(body)
    assert read_frame(frame[:16] + frame[16 + len(kind) :], 5000)[0] == body
    if body:
        with pytest.raises(Malformed, match="too large"):
            read_frame(frame[:16] + frame[16 + len(kind) :], len(body) - 1)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_a_mutated_frame_is_read_refused_or_ends_and_never_asks_for_more_than_the_limit(
    body: bytes, seed: int
) -> None:
    frames = [pack(Type.CALL, body * 9), pack(Type.REPLY, body)]
    data = mutate(frames[0], random.Random(seed), frames)
    try:
        found, asked = read_frame(data, 1000)
    except (Malformed, Broken):
        return
    assert len(found) <= 1000 and asked <= 1000


@settings(max_examples=300)
@given(st.sampled_from([Control, Offer, Verdict, Whole]), st.integers(0, 2**32))
def test_bodies_decode_to_their_type_or_are_malformed(kind: Any, seed: int) -> None:
    valid = [
        encode(Greeting(bytes(8), bytes(8), bytes(8))),
        encode(Ping(7)),
        encode(Offer(b"key", 10)),
        encode(Whole(b"key", bytes(50))),
        b"\xdd\xff\xff\xff\xff" + bytes(30),
        b"\x91" * 3000,
    ]
    draw = random.Random(seed)
    data = mutate(draw.choice(valid), draw, valid)
    try:
        found = decode(data, kind)
    except Malformed as error:
        assert str(error) == "malformed body"  # a fixed reason, nothing of what was sent
    else:
        assert msgspec.msgpack.decode(encode(found), type=kind) == found


@given(st.binary(max_size=300), st.integers(0, 1 << 20))
def test_noise_does_not_decompress(data: bytes, full: int) -> None:
    with pytest.raises(Malformed):
        unsqueeze(b"\x28\xb5\x2f\xfd" + data, full + 1000)


def test_mutated_frames_against_a_live_node() -> None:
    found = fuzz_node(4000, 12)
    assert found["frames"] >= 4000 and found["honest_calls"] > 10
    assert found["unchanged"] and not found["errors"]
    # Every way of being wrong was met, and counted.
    assert {"unknown frame", "malformed body", "too large", "no greeting"} <= found["refusals"].keys()
    assert found["places"].keys() == {"stream", "frame", "control", "greeting", "handshake"}
    assert found["growth"] < 0.1


def test_a_crash_or_a_change_would_show() -> None:
    class Any_(msgspec.Struct):
        key: str

    state: list[str] = []

    def install(node: Node):
        async def weak(peer: str, message: Any_) -> Any_:
            state.append(message.key)
            raise KeyError(message.key)

        node.serve("weak", Any_, weak)
        return [pack(Type.CALL, encode(Any_("x")), kind=b"weak", time=100)] * 20, lambda: list(state)

    found = fuzz_node(300, 5, install=install)
    assert not found["unchanged"] and any("KeyError" in line for line in found["errors"])
