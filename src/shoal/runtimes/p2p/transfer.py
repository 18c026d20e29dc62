"""Large messages between two peers: in pieces, resumed where a broken connection left them.

A blob has a key, chosen by its sender, that names it for good: (run, tick, purpose) or a version. Up to
``SMALL`` bytes it is one call. Larger ones go over a stream: an offer (key, size), the receiver's answer
(where to go on, or that it has the key already), the bytes from there, and a tag of all of them. After a
break the sender connects and offers again. A key that is sent twice is delivered once; the same key with
other content is refused and reported (equivocation).

The tag is AES-GMAC (NIST SP 800-38D) under a secret that the receiver draws for the blob. The transport
has authenticated every byte; what the tag finds is a blob put together from unlike attempts, and a
second content under an old key. For that, a keyed tag is as good as a collision-free hash, since nobody
chooses the content after the secret and gains by it, at a tenth of SHA-256's time. It is not a name for
the content: to compare what several peers received, hash it. A receiver that has no use for it says so.

The sender's buffers are written as they are; the receiver fills one buffer of the offered size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from shoal.core import BadInput, ShoalError

from .blob import PIECE, SMALL, Answer, Claim, Offer, Tagger, Verdict, Whole
from .channel import Channel
from .frames import BadReply, CallRefused, Code, Late, Malformed
from .node import Node
from .receiver import Receiver
from .transport.base import Broken, PeerId, Unreachable

__all__ = ["BlobRefused", "Receiver", "send_blob"]

STEP = 1 << 24  # bytes tagged at a time without anything else
BACKOFF, BACKOFF_MOST = 0.02, 1.0


class BlobRefused(ShoalError):
    """The receiver does not take the blob, and would not if it were sent again."""


async def send_blob(
    node: Node,
    peer: PeerId,
    key: bytes,
    parts: Sequence[Any],
    *,
    kind: str = "blob",
    progress: Callable[[int, int], None] | None = None,
    patience: float | None = None,
) -> int:
    """Send a blob, and see it arrive.

    Args:
        node: of this peer.
        peer: to whom.
        key: names the blob for good, up to 128 bytes.
        parts: contiguous buffers, whose bytes in a row are the content; not to be changed meanwhile.
        kind: of the receiver's service.
        progress: told (bytes that the receiver or the wire has, size).
        patience: seconds without progress, however often the connection broke, before giving up
            (default: the longest deadline of ``node.limits``).

    Returns:
        Bytes of content written, those again after a break included; 0 where it was there already.

    Raises:
        BlobRefused: the receiver does not want it, or has other content under this key.
        Unreachable, Broken, Late: nothing went on for ``patience``.
    """
    if not 0 < len(key) <= 128:
        raise BadInput("key", key, "1 to 128 bytes")
    views = [memoryview(part).cast("B") for part in parts]
    sending = _Sending(node, peer, bytes(key), [view for view in views if view], kind, progress)
    limit = node.limits.ceiling_s if patience is None else patience
    pause, last, since = BACKOFF, -1, time.monotonic()
    while True:
        fault: ShoalError = Late(f"{peer[:8]} has had no room for the blob for {limit:g} s")
        try:
            answer = await sending.attempt(limit)
        except (Broken, Unreachable, Late) as error:
            answer, fault = Answer.WAIT, error
        except TimeoutError:
            answer, fault = Answer.WAIT, Late(f"{peer[:8]} did not take the blob on for {limit:g} s")
        if answer in {Answer.DONE, Answer.HAVE}:
            return sending.written
        if answer != Answer.WAIT and (answer != Answer.DAMAGED or sending.damaged > 1):
            raise BlobRefused(f"{peer[:8]} refuses blob {bytes(key).hex()[:16]}: {answer.name.lower()}")
        if sending.reached > last:
            pause, last, since = BACKOFF, sending.reached, time.monotonic()
        elif time.monotonic() - since > limit:
            raise fault
        await asyncio.sleep(pause)
        pause = min(2 * pause, BACKOFF_MOST)


class _Sending:
    """One blob on its way out, over as many attempts as it takes."""

    def __init__(
        self,
        node: Node,
        peer: PeerId,
        key: bytes,
        views: list[memoryview],
        kind: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.node, self.peer, self.key, self.kind = node, peer, key, kind
        self.views, self.size = views, sum(map(len, views))
        self.written = self.damaged = 0
        self.reached = 0  # bytes that the receiver is known to hold
        self._progress = progress

    async def attempt(self, patience: float) -> Answer:
        """Offer the blob and send what is missing."""
        try:
            if self.size <= SMALL:
                return await self._whole()
            async with await self.node.open(self.peer, self.kind) as channel:
                answer = await self._stream(channel, patience)
                await channel.finish()
        except CallRefused as error:
            if error.code in {Code.BUSY, Code.FAILED, Code.LATE}:
                return Answer.WAIT
            raise BlobRefused(str(error)) from None
        except (Malformed, BadReply):
            self.node.refuse(self.peer, "malformed reply")
            raise BlobRefused(f"{self.peer[:8]} answered with what is no answer") from None
        self.damaged += answer == Answer.DAMAGED
        return answer

    async def _whole(self) -> Answer:
        blob = Whole(self.key, b"".join(self.views))
        verdict = await self.node.call(self.peer, f"{self.kind}/small", blob, Verdict, idempotent=True)
        if verdict.answer == Answer.DONE:
            self.written += self.size
            self._tell(self.size)
        return verdict.answer

    async def _stream(self, channel: Channel, patience: float) -> Answer:
        async with asyncio.timeout(patience):
            await channel.send(Offer(self.key, self.size))
            verdict = await channel.receive(Verdict, 64)
        if verdict.answer not in {Answer.GO, Answer.HAVE} or verdict.offset > self.size:
            return verdict.answer
        self.reached = max(self.reached, verdict.offset)
        held = self.size if verdict.answer == Answer.HAVE else verdict.offset
        tag = await self._write(channel, held, verdict.secret, patience)
        async with asyncio.timeout(patience):
            await channel.send(Claim(tag))
            return (await channel.receive(Verdict, 64)).answer

    async def _write(self, channel: Channel, held: int, secret: bytes, patience: float) -> bytes:
        """Send what the receiver does not hold; the tag of everything."""
        tagger, at = Tagger(secret), 0
        for view in self.views:
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                tagger.feed(piece)
                missing = piece[max(0, held - at) :]
                at += len(piece)
                if missing:
                    async with asyncio.timeout(patience):
                        await channel.write(missing)
                    self.written += len(missing)
                    self._tell(at)
                elif at % STEP < PIECE:
                    await asyncio.sleep(0)  # tagging alone never waits; others have their turn
        return tagger.tag()

    def _tell(self, sent: int) -> None:
        if self._progress is not None:
            self._progress(sent, self.size)
