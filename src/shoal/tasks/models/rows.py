"""Batches of some of the peers: which rows of the parameters and of the shared data they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Batches", "Rows", "pick", "side_by_side", "slices"]

Rows = slice | Tensor
"""Some of the P peers: a slice, or int64 positions."""
Batch = tuple[Tensor, Tensor, Tensor | None]
"""Inputs [p, B, *feature], targets [p, B], weights [p, B] or None."""


@dataclass(frozen=True)
class Batches:
    """Every peer's batches as indices into ONE shared data tensor; called by :meth:`Stacked.train_`.

    Args:
        data: [N, *feature].
        targets: [N].
        index: int64 [P, S, B], the examples of each peer's S steps.
        weights: [P, S, B] or None; 0 where a batch is padded.
    """

    data: Tensor
    targets: Tensor
    index: Tensor
    weights: Tensor | None = None

    def __call__(self, rows: Rows, step: int) -> Batch:
        index = self.index[rows, step]
        flat = index.flatten()
        # index_select copies whole examples; data[index] would copy number by number.
        inputs = self.data.index_select(0, flat).view(*index.shape, *self.data.shape[1:])
        targets = self.targets.index_select(0, flat).view(index.shape)
        return inputs, targets, None if self.weights is None else self.weights[rows, step]


def slices(total: int, width: int) -> Iterator[slice]:
    """``0..total`` in pieces of ``width``."""
    for start in range(0, total, width):
        yield slice(start, min(start + width, total))


def pick(block: slice, live: Tensor | None) -> Rows | None:
    """The live rows of a block: the block itself (a view) where all are, None where none is."""
    if live is None or bool(live.all()):
        return block
    rows = live.nonzero()[:, 0]
    return rows + block.start if len(rows) else None


def side_by_side(work: Callable[[slice], None], allowed: bool, blocks: Sequence[slice]) -> None:
    """``work`` on every block, as many at a time as torch has threads, each with one thread; one after
    the other where that is not ``allowed``.

    A block fits the cache, so that its operations are too short to be worth splitting among threads
    (two threads inside each operation take longer than one); whole blocks are not.
    """
    threads = torch.get_num_threads()
    if threads < 2 or len(blocks) < 2 or not allowed:
        for block in blocks:
            work(block)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            min(threads, len(blocks)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(work, blocks))
    finally:
        torch.set_num_threads(threads)
