"""What a process that exchanges models keeps of its memory."""

from __future__ import annotations

import ctypes

__all__ = ["keep_heap"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT = 1 << 30


def keep_heap() -> None:
    """Buffers as large as models come and go with every tick; keep their pages for the next one.

    The C library would hand each of them back at once and have the next filled with zeros, which takes
    longer than all that is done with it. One arena for all threads, so that what the network's thread
    lets go the run's thread can have. Only glibc is told; others decide for themselves.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _KEPT), (_ARENA_MAX, 1)):
            mallopt(option, value)
