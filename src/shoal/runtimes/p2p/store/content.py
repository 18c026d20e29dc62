"""Content by its hash: names, blocks, manifests, and where blocks are kept.

A name is a CID of version 1 in base 32 (multiformats): ``b`` + lower-case base 32 of
``01 CODEC 12 20 SHA-256``. Content of up to one block (256 KiB) is named by its own hash (codec ``raw``);
longer content by that of its manifest, a MessagePack list of its size and its blocks' hashes (codec
``messagepack``), which is itself a block. Whoever holds a name can check whatever arrives for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.core import BadInput, ShoalError

from ..frames import Malformed, decode

__all__ = ["BLOCK", "Cid", "DiskStore", "Manifest", "MemoryStore", "Store", "StoreFull", "add", "read"]

BLOCK = 1 << 18
"""Bytes of a block, the last of a content excepted."""
MOST_BLOCKS = (BLOCK - 64) // 34
"""Blocks of one manifest: content of up to 2 GiB."""
_RAW, _MANIFEST = b"\x55", b"\x81\x04"  # multicodecs 0x55 and 0x0201, as varints
_HASH = b"\x12\x20"

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class StoreFull(ShoalError):
    """What is pinned leaves no room."""


class Cid(msgspec.Struct, frozen=True, order=True):
    """The name of a content.

    Args:
        digest: SHA-256 of the block.
        manifest: whether that block lists others.
    """

    digest: Digest
    manifest: bool = False

    def __str__(self) -> str:
        data = b"\x01" + (_MANIFEST if self.manifest else _RAW) + _HASH + self.digest
        return "b" + base64.b32encode(data).decode().rstrip("=").lower()

    @classmethod
    def parse(cls, text: str) -> Cid:
        """The name written in ``text``.

        Raises:
            BadInput: it is none that this store makes.
        """
        body = text[1:].upper()
        try:
            data = base64.b32decode(body + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError):
            data = b""
        for codec, manifest in ((_RAW, False), (_MANIFEST, True)):
            start = b"\x01" + codec + _HASH
            if data.startswith(start) and len(data) == len(start) + 32:
                cid = cls(data[len(start) :], manifest)
                if str(cid) == text:
                    return cid
        raise BadInput("cid", text, "a CIDv1 in base 32 of a raw or messagepack block with SHA-256")

    def fits(self, block: bytes) -> bool:
        """Whether a block is what this names."""
        return hashlib.sha256(block).digest() == self.digest


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a long content consists of.

    Args:
        size: bytes in all.
        blocks: SHA-256 of each block, in order; all but the last are ``BLOCK`` bytes.
    """

    size: Annotated[int, Meta(gt=BLOCK)]
    blocks: Annotated[tuple[Digest, ...], Meta(min_length=2, max_length=MOST_BLOCKS)]

    @classmethod
    def parse(cls, block: bytes) -> Manifest:
        """The manifest in a block whose hash has been checked.

        Raises:
            BadInput: whoever named it wrote something else.
        """
        try:
            found = decode(block, cls)
        except Malformed:
            raise BadInput("manifest", block[:16], "a list of size and block hashes") from None
        if not BLOCK * (len(found.blocks) - 1) < found.size <= BLOCK * len(found.blocks):
            raise BadInput("manifest.size", found.size, f"what {len(found.blocks)} blocks hold")
        return found

    def length(self, at: int) -> int:
        """Bytes of block number ``at``."""
        return min(BLOCK, self.size - at * BLOCK)


class Store(ABC):
    """Blocks by their hash, up to a size; the least recently used that are not pinned give way.

    Args:
        cap: bytes.
    """

    def __init__(self, cap: int = 1 << 30) -> None:
        if cap < BLOCK:
            raise BadInput("cap", cap, f"at least one block ({BLOCK} bytes)")
        self.cap, self.bytes = cap, 0
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._pins: dict[bytes, int] = {}

    def put(self, block: bytes) -> bytes:
        """Keep a block; its digest.

        Raises:
            BadInput: it is over the block limit.
            StoreFull: what is pinned leaves no room for it.
        """
        if len(block) > BLOCK:
            raise BadInput("block", f"{len(block)} bytes", f"at most {BLOCK} bytes")
        digest = hashlib.sha256(block).digest()
        if digest not in self._sizes:
            self._room(len(block))
            self._write(digest, block)
            self._sizes[digest] = len(block)
            self.bytes += len(block)
        self._sizes.move_to_end(digest)
        return digest

    def get(self, digest: bytes) -> bytes | None:
        """The block, or None. What a disk has damaged counts as lost."""
        if digest not in self._sizes:
            return None
        block = self._read(digest)
        if block is None or hashlib.sha256(block).digest() != digest:
            self.drop(digest)
            return None
        self._sizes.move_to_end(digest)
        return block

    def __contains__(self, digest: object) -> bool:
        return digest in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def drop(self, digest: bytes) -> None:
        """Forget a block."""
        size = self._sizes.pop(digest, None)
        if size is not None:
            self.bytes -= size
            self._remove(digest)

    def pin(self, *digests: bytes) -> None:
        """These do not give way; counted, so that two contents may share a block."""
        for digest in digests:
            self._pins[digest] = self._pins.get(digest, 0) + 1

    def unpin(self, *digests: bytes) -> None:
        """Undo one :meth:`pin`."""
        for digest in digests:
            left = self._pins.pop(digest, 0) - 1
            if left > 0:
                self._pins[digest] = left

    def _room(self, size: int) -> None:
        for digest in list(self._sizes):
            if self.bytes + size <= self.cap:
                return
            if digest not in self._pins:
                self.drop(digest)
        if self.bytes + size > self.cap:
            raise StoreFull(f"no room for {size} bytes beside what is pinned ({self.cap} in all)")

    @abstractmethod
    def _write(self, digest: bytes, block: bytes) -> None: ...

    @abstractmethod
    def _read(self, digest: bytes) -> bytes | None: ...

    @abstractmethod
    def _remove(self, digest: bytes) -> None: ...


class MemoryStore(Store):
    """Blocks in memory."""

    def __init__(self, cap: int = 1 << 30) -> None:
        super().__init__(cap)
        self._blocks: dict[bytes, bytes] = {}

    def _write(self, digest: bytes, block: bytes) -> None:
        self._blocks[digest] = bytes(block)

    def _read(self, digest: bytes) -> bytes | None:
        return self._blocks.get(digest)

    def _remove(self, digest: bytes) -> None:
        del self._blocks[digest]


class DiskStore(Store):
    """Blocks as files ``folder/ab/HEX``, each written whole or not at all; survives a crash.

    Args:
        folder: made where it is missing.
        cap: bytes.
    """

    def __init__(self, folder: str | Path, cap: int = 1 << 30) -> None:
        super().__init__(cap)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("??/*.part"):
            path.unlink()
        found = [(path.stat(), path) for path in self.folder.glob("??/*") if len(path.name) == 64]
        for stat, path in sorted(found, key=lambda f: f[0].st_mtime_ns):
            self._sizes[bytes.fromhex(path.name)] = stat.st_size
            self.bytes += stat.st_size
        self._room(0)

    def _path(self, digest: bytes) -> Path:
        return self.folder / digest[:1].hex() / digest.hex()

    def _write(self, digest: bytes, block: bytes) -> None:
        path = self._path(digest)
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".part")
        with draft.open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _read(self, digest: bytes) -> bytes | None:
        try:
            return self._path(digest).read_bytes()
        except OSError:
            return None

    def _remove(self, digest: bytes) -> None:
        self._path(digest).unlink(missing_ok=True)


def split(data: bytes | memoryview) -> Iterator[memoryview]:
    """The blocks of a content; one, empty, of none."""
    view = memoryview(data)
    for start in range(0, max(len(view), 1), BLOCK):
        yield view[start : start + BLOCK]


def add(store: Store, data: bytes | memoryview) -> Cid:
    """Keep a content; its name.

    Raises:
        BadInput: it is larger than one manifest lists.
        StoreFull: it is larger than the store.
    """
    if len(data) > MOST_BLOCKS * BLOCK:
        raise BadInput("data", f"{len(data)} bytes", f"at most {MOST_BLOCKS * BLOCK} bytes")
    digests: list[bytes] = []
    try:
        for block in split(data):
            digest = store.put(bytes(block))
            store.pin(digest)  # so that a content never pushes itself out
            digests.append(digest)
        if len(digests) == 1:
            return Cid(digests[0])
        return Cid(store.put(msgspec.msgpack.encode(Manifest(len(data), tuple(digests)))), manifest=True)
    finally:
        store.unpin(*digests)


def read(store: Store, cid: Cid) -> bytes | None:
    """A content that the store holds whole, or None.

    Raises:
        BadInput: the name's block is no manifest.
    """
    first = store.get(cid.digest)
    if first is None or not cid.manifest:
        return first
    manifest = Manifest.parse(first)
    data = bytearray(manifest.size)
    for at, digest in enumerate(manifest.blocks):
        block = store.get(digest)
        if block is None:
            return None
        if len(block) != manifest.length(at):
            raise BadInput("manifest", str(cid), "blocks of the lengths that it states")
        data[at * BLOCK : at * BLOCK + len(block)] = block
    return bytes(data)
