"""A replica on disk: own deltas before anybody hears of them, the others' when there is time.

``own.deltas`` is a row of frames (u32 length, big-endian, and a signed delta) that begins anew with every
snapshot. A frame is on the disk before the delta is told, so a peer that is killed and comes back never
signs another table under a version that it has told: a crash makes no fork. A torn last frame was never
told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shoal.core import BadInput

from ..frames import Malformed, decode
from .delta import Signed

__all__ = ["Fork", "Journal", "Saved"]


class Fork(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The proof that an author is dishonest: two deltas that contradict each other."""

    one: Signed
    other: Signed


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """What a replica knows of others."""

    deltas: tuple[Signed, ...] = ()
    forks: tuple[Fork, ...] = ()


class Journal:
    """The files of one replica.

    Args:
        folder: made where it is missing; of this replica alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own, self._others = folder / "own.deltas", folder / "others.deltas"
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, signed: Signed, *, snapshot: bool) -> None:
        """Keep an own delta; a snapshot replaces those before it."""
        body = msgspec.msgpack.encode(signed)
        frame = len(body).to_bytes(4, "big") + body
        if snapshot:
            _replace(self._own, frame)
            return
        with self._own.open("ab") as file:
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())

    def own(self) -> Iterator[Signed]:
        """The own deltas, in order.

        Raises:
            BadInput: the file is damaged.
        """
        data, at = self._own.read_bytes() if self._own.exists() else b"", 0
        while (end := at + 4 + int.from_bytes(data[at : at + 4], "big")) <= len(data) and at + 4 <= len(
            data
        ):
            try:
                yield decode(data[at + 4 : end], Signed)
            except Malformed:
                raise BadInput("folder", str(self._own), "this store's own deltas") from None
            at = end
        if at < len(data):
            _replace(self._own, data[:at])

    def save(self, saved: Saved) -> None:
        """Keep what is known of others."""
        _replace(self._others, msgspec.msgpack.encode(saved))

    def load(self) -> Saved:
        """What :meth:`save` kept.

        Raises:
            BadInput: the file is damaged.
        """
        try:
            return decode(self._others.read_bytes(), Saved) if self._others.exists() else Saved()
        except Malformed:
            raise BadInput("folder", str(self._others), "a saved store") from None


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
