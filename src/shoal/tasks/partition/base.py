"""Partitions: the contract, and what all of them share."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from shoal.core import BadInput, Draws, Part, Registry
from shoal.tasks.data.base import Dataset

__all__ = ["Partition", "apportion", "deal", "describe", "hold_out", "labels_of", "partitions", "shuffled"]


class Partition(Part):
    """Deals the rows of a data set out to n peers. A row has one holder or none."""

    @abstractmethod
    def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
        """The peer that holds each row.

        Args:
            y: [N], int64 classes 0..C-1, or real numbers.
            groups: int64 [N], the natural user of each row; or None.
            n: number of peers.
            seed: of the run.

        Returns:
            int64 [N] in 0..n-1; -1 where nobody holds the row.

        Raises:
            BadInput: the data cannot be dealt out like this.
        """

    def assign(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> list[Tensor]:
        """The rows of each peer: n int64 lists, ascending, disjoint, none empty.

        Raises:
            BadInput: more peers than rows, a peer left without rows, or what :meth:`owner` raises.
        """
        if not 1 <= n <= len(y):
            raise BadInput("peers", n, f"1 to {len(y)}, the number of examples")
        owner = self.owner(y, groups, n, seed)
        size = torch.bincount(owner + 1, minlength=n + 1)
        lists = list(torch.split(torch.argsort(owner, stable=True), size.tolist()))[1:]
        empty = (size[1:] == 0).nonzero().flatten().tolist()
        if empty:
            raise BadInput("partition", self.slug, f"rows for every peer; {empty[0]} of {n} holds none")
        return lists

    def skew(self, x: Tensor, lists: list[Tensor], seed: int) -> Tensor:
        """The features as their holders see them: x [N, ...] anew, rows that nobody holds unchanged."""
        return x


def labels_of(y: Tensor, slug: str) -> tuple[np.ndarray, int]:
    """Labels and the number of classes.

    Raises:
        BadInput: the targets are real numbers.
    """
    if y.is_floating_point():
        raise BadInput(
            "partition", slug, "a partition without labels (iid, quantity, shards) for regression"
        )
    return y.numpy(), int(y.max()) + 1


def shuffled(y: Tensor, seed: int, purpose: str) -> np.ndarray:
    """Rows sorted by target, in random order where targets are equal: int64 [N]."""
    key = Draws(seed, purpose, torch.zeros(1, dtype=torch.int64)).words(len(y))[0].numpy()
    return np.asarray(np.lexsort((key, y.numpy())))


def deal(y: Tensor, counts: np.ndarray, seed: int, purpose: str) -> Tensor:
    """Deal rows out so that peer i holds ``counts[i, c]`` random rows of class c.

    Args:
        y: int64 [N].
        counts: int64 [n, C], columns within the classes' sizes.

    Returns:
        Owners, int64 [N]; -1 for rows left over.
    """
    n = len(counts)
    order = shuffled(y, seed, purpose)
    size = np.bincount(y.numpy(), minlength=counts.shape[1])
    held = np.concatenate([counts, (size - counts.sum(0))[None]])  # the last row: nobody
    peer = np.tile(np.append(np.arange(n), -1), counts.shape[1])
    owner = np.empty(len(y), np.int64)
    owner[order] = np.repeat(peer, held.T.reshape(-1))
    return torch.from_numpy(owner)


def apportion(weight: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to ``total`` in proportion to ``weight`` [n], each at least 1, by largest
    remainders."""
    share = weight / weight.sum() * (total - len(weight))
    count = np.floor(share).astype(np.int64)
    rest = total - len(weight) - int(count.sum())
    count[np.argsort(count - share, kind="stable")[:rest]] += 1
    return np.asarray(count + 1)


def hold_out(lists: list[Tensor], share: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Part of each peer's rows put aside for its own test.

    Args:
        lists: n int64 lists of rows.
        share: of each peer's rows, rounded; but at least one row, and never its last one.

    Returns:
        (training lists, test lists). A peer with a single row, or none, has an empty test list.
    """
    size = torch.tensor([len(rows) for rows in lists])
    flat = torch.cat(lists)
    owner = torch.repeat_interleave(torch.arange(len(lists)), size)
    key = Draws(seed, "data/hold-out", flat).words(1)[:, 0]
    order = torch.from_numpy(np.lexsort((key.numpy(), owner.numpy())))
    start = torch.cumsum(size, 0) - size
    rank = torch.arange(len(flat)) - start[owner]  # owner is sorted: order keeps each peer's places
    held = torch.minimum((size.double() * share).round().to(torch.int64).clamp(min=1), size - 1).clamp(
        min=0
    )
    aside = torch.zeros(len(flat), dtype=torch.bool)
    aside[order] = rank < held[owner]
    train = torch.split(flat[~aside], (size - held).tolist())
    return list(train), list(torch.split(flat[aside], held.tolist()))


def describe(dataset: Dataset, lists: list[Tensor]) -> Tensor:
    """Rows of each class that each peer holds: int64 [n, C]; for regression all rows, [n, 1]."""
    classes = max(dataset.classes, 1)
    y = dataset.y if dataset.classes else torch.zeros(len(dataset), dtype=torch.int64)
    peer = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([len(rows) for rows in lists]))
    cell = peer * classes + y[torch.cat(lists)]
    return torch.bincount(cell, minlength=len(lists) * classes).reshape(len(lists), classes)


partitions: Registry[Partition] = Registry("partition", "shoal.tasks.partition", Partition)
