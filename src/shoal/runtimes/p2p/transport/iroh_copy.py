"""A faster copy for the iroh binding, which hands byte strings to Rust one byte at a time.

The generated ``_UniffiRustBufferBuilder.write`` (iroh-ffi issue 229) is a Python loop over the bytes: 2 to
5 MB/s. One ``memmove`` does the same at over 100. Only the version that this was read against is touched.
"""

from __future__ import annotations

import ctypes
import logging
from importlib.metadata import version
from typing import Any

__all__ = ["CHECKED", "copy_at_once"]

CHECKED = "1.2.0"

log = logging.getLogger(__name__)


def copy_at_once(ffi: Any) -> bool:
    """Make the binding copy a byte string by one ``memmove``; whether it does.

    Another version of the binding than :data:`CHECKED` is left as it is (and said so in the log).
    """
    builder = ffi._UniffiRustBufferBuilder
    if version("iroh") != CHECKED:
        log.warning("iroh %s is not %s: byte strings are copied as it pleases", version("iroh"), CHECKED)
        return False
    if builder.write is not _write:
        builder.write = _write
    return True


def _write(self: Any, value: bytes) -> None:
    """In place of ``_UniffiRustBufferBuilder.write``, which sets ``data[n + i]`` for each byte ``i``."""
    with self._reserve(len(value)):
        ctypes.memmove(ctypes.addressof(self.rbuf.data.contents) + self.rbuf.len, bytes(value), len(value))
