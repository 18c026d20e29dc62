"""Sharing a file: members who want its chunks and have, now and then, room to send some themselves.

The uplink is the scarce part: at any tick only some peers have capacity to spare, and each of them
serves one chunk. Colluders may be among them, who sign for bytes that never flowed; what they do is
theirs to say, what it gains them is measured here. The file is made from the seed of the run; every
chunk has its own hash, so that who takes it can tell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Place, Task, Work, tasks

__all__ = ["FileSharing", "Sharing", "chunk_bytes"]


def chunk_bytes(seed: int, index: int, size: int) -> bytes:
    """Chunk ``index`` of the file of a run."""
    return hashlib.shake_128(f"{seed}\0chunk\0{index}".encode()).digest(size)


class Sharing(Work):
    """The members of this block.

    Attributes:
        config: the task.
        colluders: global numbers of the colluders, (earner, signer) each; empty where there are none.
        got: int64 [P], the next chunk that each peer wants: chunks come in order.
    """

    def __init__(self, place: Place, config: FileSharing) -> None:
        super().__init__(place)
        self.config = config
        self.got = torch.zeros(len(place.peers), dtype=torch.int64)
        zero = torch.zeros(1, dtype=torch.int64)
        chosen = Draws(place.seed, "shared/colluders", zero).choice(place.n, 2 * config.pairs)[0]
        self.colluders: list[tuple[int, int]] = [
            (int(a), int(b)) for a, b in chosen.reshape(-1, 2).tolist()
        ]

    def room(self, tick: int) -> Tensor:
        """Who has capacity to spare at a tick, as everybody knows: bool [n]."""
        draws = Draws(self.place.seed, "uplink", torch.arange(self.n), tick)
        return draws.uniform(1)[:, 0] < self.config.uplinks

    def minted(self, tick: int, total: int) -> list[tuple[int, int, int]]:
        """(earner, signer, bytes) that colluders sign for at a tick without a transfer."""
        if not self.config.minted or tick != int(self.config.mint_at * total):
            return []
        return [(a, b, self.config.minted * self.config.chunk) for a, b in self.colluders]

    def chunk(self, index: int) -> bytes:
        return chunk_bytes(self.place.seed, index, self.config.chunk)

    def take(self, row: int, index: int, data: Any) -> bool:
        """Row ``row`` has received a chunk; whether it is the one that it wants, undamaged."""
        if index != int(self.got[row]) or data != self.chunk(index):
            return False
        got, spent = self.got.clone(), self.spent.clone()
        got[row] += 1
        spent[row] += 1.0
        self.got, self.spent = got, spent
        return True

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        """``service``: chunks received; ``colluders``: 1 for colluders, whose service is their pair's."""
        service = self.got.to(torch.float64)
        return {"service": service, "service_colluders": self._of_colluders(service)}

    def _of_colluders(self, service: Tensor) -> Tensor:
        """The service of colluders; the others' is not a number and left out of the mean: [P]."""
        who = torch.tensor([p for pair in self.colluders for p in pair], dtype=torch.int64)
        return torch.where(torch.isin(self.peers, who), service, torch.nan)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "got": self.got}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.got = state["got"]


@tasks.register("file-sharing")
@dataclass(frozen=True)
class FileSharing(Task):
    """Every peer wants the chunks of one file, in order, from whoever has room.

    Args:
        chunk: bytes of one.
        uplinks: expected share of the peers that have capacity to spare at a tick.
        pairs: pairs of colluders, drawn from the seed.
        minted: chunks that the signer of a pair signs for though they never flowed; 0: they are honest.
        mint_at: when, as a share of the run.
    """

    chunk: Annotated[int, Meta(ge=16, le=1 << 20)] = 1024
    uplinks: Annotated[float, Meta(gt=0, le=1)] = 0.1
    pairs: Annotated[int, Meta(ge=0)] = 0
    minted: Annotated[int, Meta(ge=0)] = 0
    mint_at: Annotated[float, Meta(ge=0, lt=1)] = 0.1

    def open(self, place: Place) -> Sharing:
        if 2 * self.pairs > place.n:
            raise BadInput("pairs", self.pairs, f"at most {place.n // 2} pairs among {place.n} peers")
        return Sharing(place, self)
