"""The IDX format of MNIST: a magic number, the sizes, then bytes; plain or gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.core import BadInput

__all__ = ["read_idx"]

_MOST = 1 << 31


def read_idx(path: Path, dims: int) -> Tensor:
    """The array in one file of unsigned bytes.

    Args:
        path: a file whose name ends in ``.gz`` or not.
        dims: how many dimensions it must have (images 3, labels 1).

    Returns:
        uint8, of the sizes that the file states.

    Raises:
        BadInput: not readable, not IDX, of another type or dimension, truncated, or longer than stated.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise BadInput("data.folder", str(path), f"a readable file ({error.strerror})") from None
    return _read(path, dims, changed)


@lru_cache(maxsize=8)
def _read(path: Path, dims: int, _changed: int) -> Tensor:
    def bad(why: str) -> BadInput:
        return BadInput("data.folder", str(path), f"an IDX file of bytes in {dims} dimensions; {why}")

    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise bad(f"it starts with {head.hex() or 'nothing'}")
            if head[2] != 8 or head[3] != dims:
                raise bad(f"it has type {head[2]:#04x} and {head[3]} dimensions")
            sizes = np.frombuffer(file.read(4 * dims).ljust(4 * dims, b"\0"), ">u4").tolist()
            if not 0 < math.prod(sizes) < _MOST:
                raise bad(f"it states the sizes {sizes}")
            body = file.read(math.prod(sizes))
            if len(body) < math.prod(sizes):
                raise bad(f"truncated: {len(body)} of {math.prod(sizes)} bytes")
            if file.read(1):
                raise bad(f"longer than the {math.prod(sizes)} bytes that it states")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise bad(f"not readable, perhaps truncated ({error})") from None
    return torch.from_numpy(np.frombuffer(body, np.uint8).reshape(sizes).copy())
