"""The one door between blocks of peers.

A block holds some of the run's peers and runs the method for them. Whatever leaves it goes through
its port as parcels of bytes; who hosts the other blocks (threads, actors, machines) is the port's
affair alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Alone", "Blocks", "Buffer", "Port"]

Buffer = bytes | bytearray | memoryview


class Port(Protocol):
    """What the exchange needs of a placement.

    Attributes:
        here: the number of this block.
        sizes: how many peers each block holds: the first ``sizes[0]`` peers are block 0's, and so on.
        trusted: whether the blocks are one program (threads, a cluster). Sums may then be formed where
            the terms are, and an adversary may look into every block, as its model says that it does.
            Between strangers neither is so.
    """

    here: int
    sizes: Sequence[int]
    trusted: bool

    def begin(self, tick: int) -> None:
        """A tick begins: the calls of :meth:`swap` are numbered anew."""

    def swap(self, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]) -> Mapping[int, Buffer]:
        """Hand over one parcel for each block of ``out`` and wait for one from each of ``want``.

        In every tick all blocks call this equally often and in the same order; calls are matched by
        their number.

        Args:
            out: block -> the pieces of its parcel, sent one behind the other.
            want: the blocks that a parcel is expected from.

        Returns:
            block -> its parcel. A trusted port returns all of ``want`` or raises
            :class:`shoal.core.RunFailed`; another leaves out those that did not come in time.
        """

    def missed(self) -> Sequence[int]:
        """Blocks that some parcel since the last call of this may not have reached in time."""

    def refuse(self, block: int, why: str) -> None:
        """What ``block`` sent could not be used."""


class Alone:
    """The port of a block that holds all n peers: there is nobody to swap with."""

    here = 0
    trusted = True

    def __init__(self, n: int) -> None:
        self.sizes: Sequence[int] = (n,)

    def begin(self, tick: int) -> None:
        pass

    def swap(self, out: Mapping[int, Sequence[Buffer]], want: Sequence[int]) -> Mapping[int, Buffer]:
        assert not out and not want
        return {}

    def missed(self) -> Sequence[int]:
        return ()

    def refuse(self, block: int, why: str) -> None:
        raise AssertionError(why)


class Blocks:
    """Which peer lives where, as one block sees it. Node n is the server, which lives with peer 0.

    Args:
        port: the block's door.
    """

    def __init__(self, port: Port) -> None:
        sizes = torch.tensor(list(port.sizes), dtype=torch.int64)
        stop = torch.cumsum(sizes, 0)
        self.here, self.count, self.n = port.here, len(sizes), int(stop[-1])
        self.stop = int(stop[port.here])
        self.start = self.stop - int(sizes[port.here])
        self.peers = torch.arange(self.start, self.stop)
        self.home = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.home = torch.cat([self.home, self.home[:1]])
        self.alone = self.count == 1

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def hosts_server(self) -> bool:
        return self.start == 0

    def mine(self, nodes: Tensor) -> Tensor:
        """Bool: which of these nodes live here (the server too)."""
        return self.home[nodes] == self.here

    def rows(self, values: Tensor) -> Tensor:
        """This block's rows of something known for all peers."""
        return values if self.alone else values[self.start : self.stop]
