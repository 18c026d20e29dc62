"""Messages between blocks: what one block tells another about its senders, and what it makes of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from shoal.core import Frames

from .parcel import Parcel, buffer

__all__ = ["Known", "Spoken", "merge", "pack_spoken", "unpack_spoken"]


@dataclass(frozen=True)
class Spoken:
    """What some senders said in one broadcast.

    Args:
        ids: int64 [S], the senders' numbers, ascending.
        frames: as encoded; None where they were joined from several blocks and nobody will look.
        value: [S, D], as decoded; 0 where it was refused.
        sound: bool [S], whether it could be decoded and is finite.
        reference: [S, D], what the encoded difference was added to, or None.
        left: float64 [S], when its messages had left.
        cost: int64 [S], bytes that its message to the server takes.
        scalars: float64 [S, N], numbers that travel exactly, or None.
        weight: float64 [S], what each weighs, or None.
    """

    ids: Tensor
    frames: Frames | None
    value: Tensor
    sound: Tensor
    reference: Tensor | None
    left: Tensor
    cost: Tensor
    scalars: Tensor | None = None
    weight: Tensor | None = None


class Known:
    """Rows that other peers hold too, found by their digest: the last ones that were cast or pooled.

    Between strangers a compressed update names its base by digest; who does not hold that base cannot
    use the update.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    @staticmethod
    def digest(row: Tensor) -> bytes:
        return hashlib.blake2b(buffer(row), digest_size=16).digest()

    def add(self, row: Tensor) -> None:
        """Remember a row [D]."""
        key = self.digest(row)
        self._rows[key] = row
        self._rows.move_to_end(key)
        while len(self._rows) > self.LIMIT:
            self._rows.popitem(last=False)

    def get(self, key: bytes) -> Tensor | None:
        return self._rows.get(key)


def pack_spoken(said: Spoken, which: Tensor) -> dict[str, Tensor]:
    """The senders ``which`` (bool [S]) of a broadcast as tensors of a parcel."""
    assert said.frames is not None
    every = bool(which.all())
    pick = (lambda v: v) if every else (lambda v: v[which])
    length = pick(said.frames.length)
    width = int(length.max()) if len(length) else 0
    out = {
        "ids": pick(said.ids),
        "length": length,
        "frames": pick(said.frames.data)[:, :width],
        "left": pick(said.left),
        "cost": pick(said.cost),
    }
    if said.scalars is not None:
        out["scalars"] = pick(said.scalars)
    if said.weight is not None:
        out["weight"] = pick(said.weight)
    return out


def unpack_spoken(
    parcel: Parcel, allowed: Tensor, scalars: int, weighted: bool, limit: int
) -> dict[str, Tensor]:
    """The tensors of :func:`pack_spoken`, checked.

    Args:
        allowed: int64, senders of that block that may speak to this one.
        scalars: how many numbers go along.
        weighted: whether a weight does.
        limit: the most bytes of a frame.

    Raises:
        ValueError: something is missing, of another type or shape, or out of bounds.
    """
    t = parcel.tensors
    count = len(t["ids"]) if "ids" in t else -1
    wanted = {"ids": (torch.int64, 1), "length": (torch.int64, 1), "left": (torch.float64, 1)}
    wanted["cost"] = (torch.int64, 1)
    wanted |= {"frames": (torch.uint8, 2)}
    wanted |= {"scalars": (torch.float64, 2)} if scalars else {}
    wanted |= {"weight": (torch.float64, 1)} if weighted else {}
    for name, (dtype, axes) in wanted.items():
        held = t.get(name)
        if held is None or held.dtype != dtype or held.ndim != axes or len(held) != count:
            raise ValueError(f"{name} is missing or of another form")
    ids, length, frames = t["ids"], t["length"], t["frames"]
    if count and (bool((ids[1:] <= ids[:-1]).any()) or not bool(torch.isin(ids, allowed).all())):
        raise ValueError("speaks for peers that it does not hold")
    if count and not (int(length.min()) >= 0 and int(length.max()) <= frames.shape[1] <= limit):
        raise ValueError("a frame of that length cannot be")
    if scalars and (t["scalars"].shape[1] != scalars or not bool(torch.isfinite(t["scalars"]).all())):
        raise ValueError("its numbers are not finite")
    if weighted and not bool((torch.isfinite(t["weight"]) & (t["weight"] > 0)).all()):
        raise ValueError("a weight must be positive")
    return t


def merge(parts: Sequence[Spoken], frames: bool) -> Spoken:
    """What several blocks said, in the order of the senders' numbers.

    Args:
        frames: whether the encoded messages will be looked at again, or only what they decoded to.
    """
    if len(parts) == 1:
        return parts[0]
    # A block's peers are numbered one after the other, so that whole parts need only be put in order.
    parts = sorted((p for p in parts if len(p.ids)), key=lambda p: int(p.ids[0])) or parts[:1]

    def joined(name: str) -> Tensor | None:
        held = [getattr(p, name) for p in parts]
        return None if any(v is None for v in held) else torch.cat(held)

    both: Frames | None = None
    if frames:
        told = [p.frames for p in parts if p.frames is not None]
        width = max(f.data.shape[1] for f in told)
        data = torch.cat([pad(f.data, (0, width - f.data.shape[1])) for f in told])
        both = Frames(data, torch.cat([f.length for f in told]))
    names = ("ids", "value", "sound", "reference", "left", "cost", "scalars", "weight")
    return Spoken(frames=both, **{name: joined(name) for name in names})  # type: ignore[arg-type]
