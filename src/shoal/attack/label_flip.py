"""Label flipping: hostile peers learn from wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Attack, BadInput, Draws, attacks

__all__ = ["LabelFlip"]


@attacks.register("label-flip")
@dataclass(frozen=True)
class LabelFlip(Attack):
    """Hostile peers train on labels y -> C - 1 - y, or, targeted, on ``source`` called ``target``.

    Args:
        source: class to mislabel; None (with ``target``): all, mirrored.
        target: what it is called.

    Source: Tolpegin, Truex, Gursoy, Liu, "Data poisoning attacks against federated learning systems"
    (ESORICS 2020), arXiv 2007.08432 (targeted); Fang, Cao, Jia, Gong, "Local model poisoning attacks to
    Byzantine-robust federated learning" (USENIX Security 2020), arXiv 1911.11815 (mirrored).
    """

    source: Annotated[int, Meta(ge=0)] | None = None
    target: Annotated[int, Meta(ge=0)] | None = None

    def check(self) -> None:
        if (self.source is None) != (self.target is None):
            missing = "source" if self.source is None else "target"
            raise BadInput(missing, None, "source and target are given together, or neither")
        if self.source is not None and self.source == self.target:
            raise BadInput("target", self.target, "another class than source")

    def batch(
        self, x: Tensor, y: Tensor, hostile: Tensor, draws: Draws, classes: int
    ) -> tuple[Tensor, Tensor]:
        if self.source is None or self.target is None:
            wrong = classes - 1 - y
        else:
            self._within(classes)
            wrong = torch.where(y == self.source, torch.full_like(y, self.target), y)
        return x, torch.where(hostile[:, None], wrong, y)

    def probe(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, int] | None:
        """Targeted: the test samples of ``source`` as they are; success is to call them ``target``."""
        if self.target is None:
            return None
        self._within(classes)
        chosen = y == self.source
        return x[chosen], y[chosen], self.target

    def _within(self, classes: int) -> None:
        for name, value in (("source", self.source), ("target", self.target)):
            if value is not None and value >= classes:
                raise BadInput(name, value, f"a class below {classes}")
