"""The byte meter: every encoded payload is counted here once, by link and direction."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Meter"]


class Meter:
    """Counts the encoded bytes and the messages of each directed link.

    Args:
        nodes: peers plus one for the server, whose number is ``nodes - 1``.
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.total = 0
        self.messages = 0
        self.tick_bytes = 0
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._bytes = torch.zeros(0, dtype=torch.int64)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._held = 0

    def count(self, src: Tensor, dst: Tensor, size: Tensor) -> None:
        """Add ``size`` bytes (int64 [E]) to the links ``src -> dst``."""
        if not len(src):
            return
        sent = int(size.sum())
        self.total += sent
        self.tick_bytes += sent
        self.messages += len(src)
        self._pending.append((src * self.nodes + dst, size))
        self._held += len(src)
        if self._held > 1 << 20:
            self._fold()

    def start_tick(self) -> None:
        self.tick_bytes = 0

    def _fold(self) -> None:
        keys = torch.cat([self._keys, *(k for k, _ in self._pending)])
        sizes = torch.cat([self._bytes, *(s for _, s in self._pending)])
        self._keys, where = torch.unique(keys, return_inverse=True)
        self._bytes = torch.zeros(len(self._keys), dtype=torch.int64).index_add_(0, where, sizes)
        self._pending, self._held = [], 0

    def links(self) -> tuple[Tensor, Tensor, Tensor]:
        """(sender, receiver, bytes) of every link used, int64 [L] each, by sender then receiver."""
        self._fold()
        return self._keys // self.nodes, self._keys % self.nodes, self._bytes

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        self._fold()
        totals = torch.tensor([self.total, self.messages])
        return {"keys": self._keys, "bytes": self._bytes, "totals": totals}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._keys, self._bytes = state["keys"], state["bytes"]
        self.total, self.messages = (int(v) for v in state["totals"])
        self._pending, self._held, self.tick_bytes = [], 0, 0
