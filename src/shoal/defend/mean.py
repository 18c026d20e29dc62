"""The weighted mean: no defence, and the measure of every other rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.core import Inbox, Rule, rules

__all__ = ["Mean"]


@rules.register("mean")
@dataclass(frozen=True)
class Mean(Rule):
    """The mean of the messages under the mixing weights: one hostile message moves it anywhere."""

    plain = True

    def __call__(self, inbox: Inbox) -> Tensor:
        return inbox.mean()
