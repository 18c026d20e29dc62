"""Centered clipping: no message moves the result by more than tau times its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Inbox, rules

from .base import GramRule, shares
from .gram import gram, squares

__all__ = ["CenteredClip"]


@rules.register("centered-clip")
@dataclass(frozen=True)
class CenteredClip(GramRule):
    """v += sum_i w_i (m_i - v) min(1, tau / |m_i - v|), repeated from v = the centre.

    The centre is what the receiver believed before: ``inbox.centre`` (a server's previous aggregate or
    the base of the updates), else its own value (on graphs), else 0 (a server's first round). The
    weights are the mixing weights, over what came made to sum to 1; the own value takes part with its
    own weight. Iterates stay combinations of the messages and the centre, so that from the second
    iteration on distances follow from the Gram matrix about the centre.

    Exact: tau = inf with one iteration is the weighted mean, and a message of weight w moves v by at
    most w tau an iteration.

    Args:
        tau: clipping radius, > 0; inf: no clipping.
        iterations: L.

    Source: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization" (ICML
    2021), arXiv 2012.10333, algorithm 2; on graphs, He, Karimireddy, Jaggi, "Byzantine-robust
    decentralized learning via ClippedGossip" (2022), arXiv 2202.01545, with one fixed radius.
    """

    tau: Annotated[float, Meta(gt=0)] = 1.0
    iterations: Annotated[int, Meta(ge=1)] = 1

    def origin(self, inbox: Inbox) -> Tensor:
        centre = inbox.centre if inbox.centre is not None else inbox.own
        return torch.zeros(inbox.peers, inbox.dim, dtype=inbox.rows.dtype) if centre is None else centre

    def products(self, inbox: Inbox, origin: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.iterations > 1 or origin is None:
            return gram(inbox, origin)
        # The one iteration starts at the centre: it reads lengths alone.
        length, mask = squares(inbox, origin)
        return torch.diag_embed(length), mask

    def weights(self, products: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        share = shares(mask, weight)
        length = torch.diagonal(products, dim1=1, dim2=2)
        c = torch.zeros_like(share)  # v = centre + sum_i c_i (m_i - centre)
        for _ in range(self.iterations):
            inner = (products @ c[:, :, None])[:, :, 0]
            gap = (length - 2 * inner + (c * inner).sum(1, keepdim=True)).clamp(min=0).sqrt()
            pull = share * (self.tau / gap).clamp(max=1)
            c = c * (1 - pull.sum(1, keepdim=True)) + pull
        return c
