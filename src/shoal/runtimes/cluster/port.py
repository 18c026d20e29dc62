"""The port of a block on a cluster: torch.distributed, point to point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shoal.core import RunFailed
from shoal.network.port import Buffer

__all__ = ["DistPort", "Lost", "TCPStore", "meeting_point"]

HEAD = 4096
"""The first message of a parcel is HEAD bytes: its size (int64) and as much of it as fits. What is
longer follows in a second one, for which the receiver has then made room. Small parcels, which are
the most frequent, so cost one message."""
SIZE = 8


class Lost(RunFailed):
    """Another block is gone."""


def meeting_point(host: str, port: int = 0, wait: float = 60.0) -> TCPStore:
    """Where the blocks of one group find each other: a small store on one of their machines.

    Args:
        host: the address of that machine.
        port: of the store that is there; 0: open one here, on a free port.
        wait: seconds that a block waits for the others.

    Raises:
        Lost: nobody is there.
    """
    patience = timedelta(seconds=wait)
    try:
        return TCPStore(host, port, None, port == 0, timeout=patience, wait_for_workers=False)
    except RuntimeError as error:
        raise _gone(-1, error) from None


class DistPort:
    """Implements :class:`shoal.network.port.Port` over one process group; a process has one at a time.

    A partner that dies resets its connections: the swap that needs it fails at once. :meth:`close`
    (or leaving the ``with`` block) cuts this block's own connections, so that a failure spreads to
    all who wait for each other, and nobody waits for the timeout.

    Args:
        here: the number of this block.
        sizes: how many peers each block holds.
        store: where they meet, see :func:`meeting_point`.
        backend: ``"gloo"``, or ``"nccl"`` where each block has a GPU of its own (parcels then pass
            through its memory, and a partner that dies is noticed only after the timeout).
        timeout: seconds after which a partner that neither answers nor resets counts as gone; it
            must be longer than the slowest block's computing between two exchanges.
    """

    trusted = True

    def __init__(
        self,
        here: int,
        sizes: Sequence[int],
        store: TCPStore,
        backend: str = "gloo",
        timeout: float = 1800.0,
    ) -> None:
        self.here, self.sizes, self.sent = here, sizes, 0
        self.device = torch.device("cuda" if backend == "nccl" else "cpu")
        try:
            dist.init_process_group(
                backend,
                store=store,
                rank=here,
                world_size=len(sizes),
                timeout=timedelta(seconds=timeout),
            )
            dist.barrier()  # some backends connect at the first call, and that call needs everyone
        except RuntimeError as error:
            raise _gone(here, error) from None

    def swap(self, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]) -> dict[int, memoryview]:
        parcels = {block: _parcel(pieces).to(self.device) for block, pieces in sorted(out.items())}
        wanted = sorted(want)
        firsts = {block: torch.empty(HEAD, dtype=torch.uint8, device=self.device) for block in wanted}
        try:
            self._exchange({block: parcel[:HEAD] for block, parcel in parcels.items()}, firsts)
            got: dict[int, Tensor] = {}
            for block, first in firsts.items():
                size = SIZE + int(first[:SIZE].view(torch.int64))
                got[block] = first[:size]
                if size > HEAD:
                    got[block] = torch.empty(size, dtype=torch.uint8, device=self.device)
                    got[block][:HEAD] = first
            self._exchange(
                {block: parcel[HEAD:] for block, parcel in parcels.items() if len(parcel) > HEAD},
                {block: whole[HEAD:] for block, whole in got.items() if len(whole) > HEAD},
            )
        except RuntimeError as error:
            raise _gone(self.here, error) from None
        return {block: whole[SIZE:].cpu().numpy().data for block, whole in got.items()}

    def _exchange(self, out: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
        ops = [dist.P2POp(dist.isend, tensor, block) for block, tensor in out.items()]
        ops += [dist.P2POp(dist.irecv, tensor, block) for block, tensor in into.items()]
        for work in dist.batch_isend_irecv(ops) if ops else ():
            work.wait()
        self.sent += sum(len(tensor) for tensor in out.values())

    def begin(self, tick: int) -> None:
        """All blocks are in step by their swaps: nothing to do."""

    def missed(self) -> Sequence[int]:
        return ()

    def refuse(self, block: int, why: str) -> None:
        raise RunFailed(f"block {self.here} cannot read what block {block} sent: {why}")

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> DistPort:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parcel(pieces: Sequence[Buffer]) -> Tensor:
    """The size and the pieces in one tensor, each copied once; at least HEAD bytes."""
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    size = sum(len(view) for view in views)
    whole = torch.empty(max(HEAD, SIZE + size), dtype=torch.uint8)
    target = whole.numpy().data
    target[:SIZE] = size.to_bytes(SIZE, "little")
    at = SIZE
    for view in views:
        target[at : at + len(view)] = view
        at += len(view)
    return whole


def _gone(here: int, error: Exception) -> Lost:
    reason = str(error).rpartition("] ")[2].split(". ")[0]
    return Lost(f"a block lost another: {reason}" if here < 0 else f"block {here} lost another: {reason}")
