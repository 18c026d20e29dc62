"""The small tables that scikit-learn ships."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .base import Dataset, Source, datasets, targets

__all__ = ["SklearnSource"]


@datasets.register("sklearn")
@dataclass(frozen=True)
class SklearnSource(Source):
    """Numeric tables, every column standardised by the training rows' figures.

    Args:
        table: ``breast-cancer`` (569 x 30, 2 classes), ``wine`` (178 x 13, 3), ``iris`` (150 x 4, 3) or
            ``diabetes`` (442 x 10, regression, the target brought to mean 0 and deviation 1).
    """

    table: Literal["breast-cancer", "wine", "iris", "diabetes"] = "breast-cancer"

    def load(self) -> Dataset:
        from sklearn import datasets as shipped

        raw = getattr(shipped, f"load_{self.table.replace('-', '_')}")()
        regression = self.table == "diabetes"
        y, classes, names = targets(raw.target, regression, "data.table")
        return Dataset(
            x=torch.from_numpy(raw.data),
            y=(y - y.mean()) / y.std() if regression else y,
            classes=classes,
            names=names if regression else [str(name) for name in raw.target_names],
            source=f"{self.table} (scikit-learn, {raw.data.shape[0]} rows, {raw.data.shape[1]} columns)",
            standardize=torch.ones(raw.data.shape[1], dtype=torch.bool),
        )
