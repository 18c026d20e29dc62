"""A connection to Ray: to a cluster that runs, or to one that is started here for this run alone."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TextIO

from shoal.core import BadInput, need

__all__ = ["connected"]

OBJECT_STORE = 200 * 2**20
"""Bytes of shared memory of a cluster that is started here; what does not fit goes to disk."""


class _Quiet:
    """Standard output without what Ray prints there about workers that died: the run says it itself."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        ours = threading.current_thread().name != "ray_listen_error_messages"
        return self.stream.write(text) if ours else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def connected(address: str = "", cpus: int = 0) -> Iterator[ModuleType]:
    """Ray, ready for work; what was started here is stopped at the end.

    Args:
        address: ``""``: a cluster of this machine alone, for as long as the block lasts; ``"auto"``,
            ``"host:port"`` or ``"ray://host:port"``: one that runs. A connection that the program
            already has is used as it is.
        cpus: that a cluster started here offers (0: the machine's cores).

    Raises:
        MissingExtra: Ray is not installed.
        BadInput: no cluster there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # what it has put aside it prints while it ends
    ray = need("ray", "cluster")
    if ray.is_initialized():
        yield ray
        return
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if not address:
        told |= {
            "address": "local",
            "num_cpus": cpus or os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    else:
        told["address"] = address
        _knock(address)
    try:
        ray.init(**told)
    except (ConnectionError, ValueError, TimeoutError) as error:
        raise BadInput("address", address, f"no Ray cluster there ({_line(error)})") from None
    try:
        with contextlib.redirect_stdout(_Quiet(sys.stdout)):
            yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray ends the whole process where nobody answers at ``host:port``: find out before."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BadInput("address", address, f"no Ray cluster there ({_line(error)})") from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
