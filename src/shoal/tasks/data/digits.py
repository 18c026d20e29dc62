"""The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Dataset, datasets
from .images import Images

__all__ = ["DigitsSource"]


@datasets.register("digits")
@dataclass(frozen=True)
class DigitsSource(Images):
    """UCI Optical Recognition of Handwritten Digits (the test part), values in [0, 1].

    Source: Alpaydin & Kaynak, UCI Machine Learning Repository (1998), as shipped by scikit-learn.
    """

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits

        raw = load_digits()
        return Dataset(
            x=self.shape(torch.from_numpy(raw.images), 16.0),
            y=torch.from_numpy(raw.target).to(torch.int64),
            classes=10,
            names=[str(d) for d in range(10)],
            source="digits (scikit-learn, 1,797 images of 8 x 8)",
            standardize=self.standardize,
        )
