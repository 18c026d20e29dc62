"""What is said on a stream: heads of fixed size, bodies of declared and bounded size, typed failures.

The first byte of a stream says what it is for: ``CONTROL`` (one per connection, the dialler's first),
``CALL`` (request, then reply) or ``STREAM`` (raw bytes and messages both ways). A head is 16 bytes,
big-endian: type u8, flags u8, code u8, length of the kind u8, body length u32, length of the body once
decompressed u32, and a time u32 (of a call: the caller's patience in ms; of a reply: the microseconds
that the handler took). The kind (ASCII) and the body (MessagePack) follow.

Nothing is allocated before its declared length has been held against the receiver's limit, and a
compressed body (zstd) must decompress to exactly the declared length. Every failure to read becomes a
:class:`Malformed` with a fixed text, which is what gets counted.
"""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from shoal.core import ShoalError, need

from .transport.base import PeerId, Stream

__all__ = [
    "BadReply",
    "CallFailed",
    "CallRefused",
    "Code",
    "Head",
    "Late",
    "Malformed",
    "Refused",
    "Type",
    "decode",
    "encode",
    "pack",
    "printable",
    "read_body",
    "read_head",
    "squeeze",
    "unsqueeze",
]

HEAD = struct.Struct(">BBBBIII")
KIND = 64
REASON = 200
SQUEEZE = 512  # bytes below which compressing costs more than it saves
ZSTD = 1  # flag: the body is a zstd frame
LEVEL = 1
LONGEST = 0xFFFFFFFF

T = TypeVar("T")


class Type(enum.IntEnum):
    """What a frame is."""

    CONTROL = 0x53
    CALL = 0x54
    STREAM = 0x55
    REPLY = 0x56


class Code(enum.IntEnum):
    """How a call went."""

    OK = 0
    UNKNOWN = 1
    MALFORMED = 2
    TOO_LARGE = 3
    BUSY = 4
    REFUSED = 5
    FAILED = 6
    LATE = 7


class CallFailed(ShoalError):
    """A call that has no reply."""


class Late(CallFailed):
    """No reply within the deadline."""


class CallRefused(CallFailed):
    """The peer answered, but not with a reply.

    Attributes:
        code: what happened there. After ``BUSY``, ``UNKNOWN``, ``MALFORMED`` and ``TOO_LARGE`` the
            request was not looked at.
        reason: in the peer's words, printable and short.
        wait: after ``BUSY``, the seconds after which to try again.
    """

    def __init__(self, peer: PeerId, kind: str, code: Code, reason: str, wait: float = 0) -> None:
        self.peer, self.kind, self.code, self.reason, self.wait = peer, kind, code, reason, wait
        super().__init__(f"{peer[:8]} refused {kind}: {code.name.lower()}{': ' if reason else ''}{reason}")


class BadReply(CallFailed):
    """What came back is not a reply of the agreed type."""


class Refused(ShoalError):
    """Raised by a handler: the request is refused, the caller told, and the refusal counted.

    Args:
        reason: short and fixed (it is a counter's key): no part of what the peer sent.
        weight: how bad it is, in strikes towards a ban.
    """

    def __init__(self, reason: str, weight: float = 1.0) -> None:
        self.reason, self.weight = reason, weight
        super().__init__(reason)


class Malformed(ShoalError):
    """Bytes that are no frame, or a body that is not of its type. The text is a fixed reason."""


class Head(NamedTuple):
    """The fixed part of a frame; fields as in the module's description."""

    type: int
    flags: int
    code: int
    kind: int
    size: int
    full: int
    time: int


def pack(
    type: Type,
    body: bytes = b"",
    *,
    kind: bytes = b"",
    code: int = Code.OK,
    time: float = 0,
    squeezable: bool = True,
) -> bytes:
    """A whole frame. ``time`` is in the unit of the type (ms or microseconds); it saturates."""
    full, flags = len(body), 0
    if squeezable and full > SQUEEZE:
        small = squeeze(body)
        if len(small) < full - full // 16:
            body, flags = small, ZSTD
    head = HEAD.pack(type, flags, code, len(kind), len(body), full, max(0, min(int(time), LONGEST)))
    return head + kind + body


async def read_head(stream: Stream) -> Head:
    """The next 16 bytes.

    Raises:
        Broken: the stream ended.
    """
    return Head._make(HEAD.unpack(await stream.read_exactly(HEAD.size)))


async def read_body(stream: Stream, head: Head, limit: int) -> bytes:
    """The body that ``head`` announces, decompressed.

    Raises:
        Malformed: it is larger than ``limit``, or not what the head says.
        Broken: the stream ended before.
    """
    if head.full > limit or head.size > limit:
        raise Malformed("too large")
    if head.flags not in {0, ZSTD} or (head.size != head.full and not head.flags):
        raise Malformed("malformed head")
    body = await stream.read_exactly(head.size) if head.size else b""
    return unsqueeze(body, head.full) if head.flags else body


def squeeze(body: bytes) -> bytes:
    """A zstd frame that names its content's size."""
    return _zstd().compressor.compress(body)


def unsqueeze(body: bytes, full: int) -> bytes:
    """The ``full`` bytes within a zstd frame; never allocates more.

    Raises:
        Malformed: there are more, fewer, or it is no frame.
    """
    zstd = need("zstandard", "p2p")
    try:
        # A frame that names a size is decompressed into a buffer of that size, whatever was asked for.
        if zstd.frame_content_size(body) != full:
            raise Malformed("malformed compression")
        data: bytes = _zstd().decompressor.decompress(body, max_output_size=full, allow_extra_data=False)
    except zstd.ZstdError:
        raise Malformed("malformed compression") from None
    if len(data) != full:
        raise Malformed("malformed compression")
    return data


class _Zstd(threading.local):
    """Both directions, one pair a thread: neither may be used by two at once."""

    def __init__(self) -> None:
        zstd = need("zstandard", "p2p")
        self.compressor: Any = zstd.ZstdCompressor(level=LEVEL, write_content_size=True)
        self.decompressor: Any = zstd.ZstdDecompressor()


@cache
def _zstd() -> _Zstd:
    return _Zstd()


def encode(message: Any) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode(message)


@cache
def _decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(cast(Any, kind), strict=True)


def decode(body: bytes, kind: type[T]) -> T:
    """A body as ``kind``.

    Raises:
        Malformed: it is not one.
    """
    try:
        return _decoder(cast(Hashable, kind)).decode(body)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        raise Malformed("malformed body") from None


def printable(reason: bytes) -> str:
    """A stranger's words, fit for a line of a log."""
    text = reason[:REASON].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
