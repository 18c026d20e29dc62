"""A data set dealt out into folders, one a peer, as each would bring it to a run of real peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .data.base import split
from .supervised import Supervised

__all__ = ["deal"]


def deal(task: Supervised, n: int, seed: int, folder: Path) -> list[Path]:
    """Write ``train.npz`` (a peer's own rows) and ``test.npz`` (everyone's) for n peers.

    A run of real peers on them (``data = folder``, ``partition = own``) is then that of one process on
    ``task`` with the same seed.

    Args:
        task: the data, its partition and the share of its test set.
        n: peers.
        seed: of the split and the partition.
        folder: where the peers' folders ``data0``, ``data1``, ... are made.

    Raises:
        BadInput: the data or the partition cannot be used so.
    """
    train, test = split(task.data.load(), task.test, seed)
    if task.limit:
        train = train.head(task.limit, seed)
    lists = task.partition.assign(train.y, train.groups, n, seed)
    x = task.partition.skew(train.x, lists, seed)
    found = []
    for peer, rows in enumerate(lists):
        own = folder / f"data{peer}"
        own.mkdir(parents=True, exist_ok=True)
        np.savez(own / "train.npz", x=x[rows].numpy(), y=train.y[rows].numpy())
        np.savez(own / "test.npz", x=test.x.numpy(), y=test.y.numpy())
        found.append(own)
    return found
