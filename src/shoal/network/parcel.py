"""Parcels: what one block sends another in one call, as bytes that a stranger may have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from .port import Buffer

__all__ = ["Parcel", "buffer", "opened", "sealed"]

_TYPES = {"B": torch.uint8, "q": torch.int64, "f": torch.float32, "d": torch.float64}
_CODES = {dtype: code for code, dtype in _TYPES.items()}
HEAD_LIMIT = 1 << 24
TENSORS = 1 << 12


class _Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Name, dtype and shape of each tensor, in their order behind the head; and plain data."""

    tensors: Annotated[list[tuple[str, str, list[int]]], Meta(max_length=TENSORS)]
    data: bytes = b""


@dataclass(frozen=True)
class Parcel:
    """Named tensors and some bytes of plain data."""

    tensors: dict[str, Tensor]
    data: bytes = b""


def buffer(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    array: Any = tensor.detach().contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def sealed(parcel: Parcel) -> Sequence[Buffer]:
    """The pieces of the parcel's bytes."""
    head = msgspec.msgpack.encode(
        _Head([(k, _CODES[v.dtype], list(v.shape)) for k, v in parcel.tensors.items()], parcel.data)
    )
    pieces: list[Buffer] = [len(head).to_bytes(4, "little"), head, bytes(_gap(4 + len(head)))]
    for tensor in parcel.tensors.values():
        if tensor.numel():
            piece = buffer(tensor)
            pieces += [piece, bytes(_gap(len(piece)))]
    return [piece for piece in pieces if len(piece)]


def _gap(size: int) -> int:
    """Tensors start at multiples of 8 bytes, so that the receiver need not copy them."""
    return -size % 8


def opened(data: Buffer) -> Parcel:
    """The parcel in these bytes; its tensors share their memory.

    Raises:
        ValueError: they are no parcel. The text says nothing of what was sent: refusals are counted by it.
    """
    view = memoryview(data).cast("B")
    if len(view) < 4:
        raise ValueError("too short")
    size = int.from_bytes(view[:4], "little")
    if size > HEAD_LIMIT or size > len(view) - 4:
        raise ValueError("a head longer than the parcel")
    try:
        head = msgspec.msgpack.decode(view[4 : 4 + size], type=_Head)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        raise ValueError("a head of another form") from None
    at, tensors = 4 + size + _gap(4 + size), {}
    for name, code, shape in head.tensors:
        dtype = _TYPES.get(code)
        if dtype is None or len(shape) > 2 or any(not 0 <= s <= 1 << 40 for s in shape) or name in tensors:
            raise ValueError("no such tensor")
        count = 1
        for side in shape:
            count *= side
        end = at + count * dtype.itemsize
        if end + _gap(end - at) > len(view):
            raise ValueError("shorter than its tensors")
        flat = np.frombuffer(view[at:end], dtype=np.uint8)
        if not flat.flags.writeable:
            flat = flat.copy()
        raw = torch.from_numpy(flat) if count else torch.zeros(0, dtype=torch.uint8)
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()
        tensors[name] = raw.view(dtype).reshape(shape)
        at = end + _gap(end - at)
    if at != len(view):
        raise ValueError("longer than its tensors")
    return Parcel(tensors, head.data)
