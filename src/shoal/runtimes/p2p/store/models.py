"""Models kept in step by version: who has which, fetched by content, checked before anything is used.

A peer that has reached tick t of a run puts its model into its content store as safetensors and publishes
``(tick, CID, digest of the layout)`` in the hash table under the run's key, signed as every entry is and
with the tick as sequence number. Others take the newest version whose layout is the one they expect, fetch
its blocks from whoever holds them, and read raw buffers of the declared names, shapes and dtypes; nothing
is unpickled. A version that cannot be had, or is not what it says, is passed over for the next newest.

A tick is its publisher's own word: ``most`` bounds what is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shoal.core import BadInput

from ..frames import Malformed, decode
from ..transport.base import PeerId
from .content import Cid, Digest, add
from .entries import key_of
from .swap import Swap, Unavailable

if TYPE_CHECKING:
    from .dht import Dht

__all__ = ["Layout", "Models", "Version", "layout_of", "unpack"]

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape, dtype)."""


class Version(msgspec.Struct, frozen=True, order=True):
    """One model that somebody publishes.

    Args:
        tick: of the run, how far it is.
        publisher: whose it is.
        cid: the name of its bytes.
        layout: digest of names, shapes and dtypes.
    """

    tick: int
    publisher: PeerId
    cid: Cid
    layout: bytes


class _Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    cid: Annotated[str, Meta(max_length=80)]
    layout: Digest


def layout_of(model: Mapping[str, Tensor]) -> Layout:
    """The layout of a model."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.items()}


def layout_digest(layout: Layout) -> bytes:
    """SHA-256 of a layout, whatever its order."""
    lines = [[name, list(shape), str(dtype)] for name, (shape, dtype) in sorted(layout.items())]
    return hashlib.sha256(msgspec.msgpack.encode(lines)).digest()


def unpack(data: bytes, layout: Layout) -> dict[str, Tensor]:
    """The tensors in a safetensors file from a stranger.

    Raises:
        BadInput: it is none, its layout is another, or a value is not finite.
    """
    try:
        model = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInput("model", f"{len(data)} bytes", f"a safetensors file ({error})") from None
    if layout_of(model) != dict(layout):
        odd = next(iter(sorted(set(layout_of(model).items()) ^ set(layout.items()), key=str)))
        raise BadInput("model", odd[0], "the declared names, shapes and dtypes")
    for name, tensor in model.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput("model", name, "finite values")
    return model


class Models:
    """The models of one run.

    Args:
        run: digest of its configuration.
        layout: of every model in it.
        dht: where versions are published.
        swap: how their content travels.
        trusted: publishers that are believed; None: all.
        lifetime_s: how long a version stays known once its publisher has gone.
    """

    def __init__(
        self,
        run: str,
        layout: Layout,
        dht: Dht,
        swap: Swap,
        *,
        trusted: Iterable[PeerId] | None = None,
        lifetime_s: float = 3600.0,
    ) -> None:
        self.run, self.layout, self.dht, self.swap = run, dict(layout), dht, swap
        self.trusted = None if trusted is None else set(trusted)
        self.lifetime_s = lifetime_s
        self.bad: set[Cid] = set()
        self._digest = layout_digest(self.layout)
        self._own: Cid | None = None

    async def publish(self, tick: int, model: Mapping[str, Tensor]) -> Version:
        """Offer this peer's model; the one that it offered before is no longer kept for others.

        Raises:
            BadInput: it is not of the run's layout.
        """
        if layout_of(model) != self.layout:
            raise BadInput("model", sorted(model)[:4], "the run's names, shapes and dtypes")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
        cid = add(self.swap.store, save(tensors))
        if self._own is not None and self._own != cid:
            self.dht.withdraw(key_of("provider", self._own.digest))
        self._own = cid
        await self.dht.provide(cid.digest, self.lifetime_s)
        said = msgspec.msgpack.encode(_Said(str(cid), self._digest))
        await self.dht.publish(self._key(), said, lifetime_s=self.lifetime_s, sequence=tick)
        return Version(tick, self.dht.identity.id, cid, self._digest)

    async def versions(self, most: int | None = None) -> list[Version]:
        """What is on offer in the run's layout, newest first (ties: by publisher).

        Args:
            most: ticks beyond are not believed.
        """
        found = []
        for entry in await self.dht.find(self._key()):
            if self.trusted is not None and entry.publisher not in self.trusted:
                continue
            try:
                said = decode(entry.value, _Said)
                cid = Cid.parse(said.cid)
            except (Malformed, BadInput):
                self.dht.node.refuse(entry.publisher, "malformed model version")
                continue
            if said.layout == self._digest and (most is None or entry.sequence <= most):
                found.append(Version(entry.sequence, entry.publisher, cid, said.layout))
        return sorted(found, reverse=True)

    async def newest(
        self, after: int = -1, most: int | None = None
    ) -> tuple[Version, dict[str, Tensor]] | None:
        """The newest model beyond tick ``after`` that can be had and is sound, or None."""
        for version in await self.versions(most):
            if version.tick <= after:
                return None
            if version.cid in self.bad:
                continue
            try:
                data = await self.swap.get(version.cid, [version.publisher])
            except Unavailable:
                continue
            except BadInput:
                self._refuse(version)
                continue
            try:
                return version, unpack(data, self.layout)
            except BadInput:
                self._refuse(version)
        return None

    def _refuse(self, version: Version) -> None:
        if len(self.bad) >= 4096:
            self.bad.clear()
        self.bad.add(version.cid)
        self.dht.node.refuse(version.publisher, "unsound model")

    def _key(self) -> bytes:
        return key_of("model", self.run)
