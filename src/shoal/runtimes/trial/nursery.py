"""Starts real processes cheaply: one that has imported everything, and forks when it is told to.

``python -m shoal.runtimes.trial.nursery`` reads one JSON object a line: ``{"start": {...orders...}}``
forks a peer, ``{"kill": NUMBER}`` ends one with SIGKILL. Each line is answered by one: the process id,
or the number killed. When its standard input ends, whoever started it is gone, and every peer is
killed. A dozen peers so share one copy of the libraries, and each starts in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from .peer import Orders, run_peer

__all__ = ["main"]


def _start(fields: dict[str, Any]) -> int:
    """Fork a peer; returns its process id. Nothing of the parent runs in the child."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        orders = Orders(**fields)
        for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
            os.dup2(os.open(os.devnull, flags), stream)
        errors = os.open(Path(orders.folder) / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        asyncio.run(_run(orders, parent))
        status = 0
    except BaseException:  # the child must not run on as a second nursery
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


async def _run(orders: Orders, parent: int) -> None:
    """The peer, for as long as its parent lives."""
    peer = asyncio.create_task(run_peer(orders))
    while os.getppid() == parent and not peer.done():
        await asyncio.wait([peer], timeout=1.0)
    peer.cancel()
    await asyncio.gather(peer, return_exceptions=not peer.done())


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main() -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    running: dict[int, int] = {}
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "start" in order:
                index = int(order["start"]["index"])
                running[index] = _start(order["start"])
                told = {"pid": running[index]}
            else:
                index = int(order["kill"])
                _kill(running.pop(index))
                told = {"killed": index}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
    finally:
        for pid in running.values():
            _kill(pid)


if __name__ == "__main__":
    main()
