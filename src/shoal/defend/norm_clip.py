"""Norm clipping: updates are shortened to a bound, then averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from shoal.core import Inbox, rules

from .base import Robust
from .centered_clip import CenteredClip

__all__ = ["NormClip"]


@rules.register("norm-clip")
@dataclass(frozen=True)
class NormClip(Robust):
    """The weighted mean of u_i min(1, tau / |u_i|), u_i = the message less the centre, on the centre.

    The centre is the base of the updates where the messages have one, else the receiver's own value,
    else 0. This is one step of centered clipping; the two names differ in where the centre comes from,
    which is the method's business.

    Args:
        tau: the bound on the norm, > 0.

    Source: Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?" (2019), arXiv
    1911.07963, section 4 (without the noise, which is a privacy stage of the wire here).
    """

    tau: Annotated[float, Meta(gt=0)] = 1.0

    def __call__(self, inbox: Inbox) -> Tensor:
        return CenteredClip(self.tau)(inbox)
