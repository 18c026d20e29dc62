"""The Gram matrices of the messages that each receiver got: what distance-based rules decide from.

They are accumulated in float64, over chunks of columns, from messages *centred before they are
multiplied*: near consensus the differences between messages are far below their lengths, and
|a|^2 + |b|^2 - 2ab of raw messages would be rounding noise. The centre is one that no single hostile
message can drag away, or a huge message would drown the honest ones' distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from shoal.core import Inbox

from .order import median

__all__ = ["distances", "gram", "slices", "squares"]

BUDGET = 1 << 20
"""Floats of a chunk of messages: it should stay in the cache while it is multiplied or sorted."""


def slices(inbox: Inbox) -> Iterator[tuple[slice, Inbox]]:
    """The inbox by chunks of columns, each with the own values as first message (:meth:`with_own`)."""
    for columns in inbox.columns(BUDGET):
        yield columns, _cut(inbox, columns)


def _cut(inbox: Inbox, columns: slice) -> Inbox:
    own = None if inbox.own is None else inbox.own[:, columns]
    return replace(inbox, rows=inbox.rows[:, columns], own=own, centre=None).with_own()


def gram(inbox: Inbox, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inner products of all messages that a receiver holds, its own value first.

    Args:
        inbox: P receivers, K slots; M = K + 1 where there are own values, else K.
        origin: [P, D], what is subtracted from the messages. Where it is not given, the products are
            about some point amid the messages, and only what is invariant to it (distances) means
            anything.

    Returns:
        float64 [P, M, M], 0 where masked out; and bool [P, M], the mask, less the messages whose
        squared length overflows float64 (norms above 1e154), which count as not received.
    """
    if origin is None and _meet_often(inbox):
        total, mask = _among_all(inbox)
    else:
        total, mask = _among_received(inbox, origin)
    mask = mask & torch.diagonal(total, dim1=1, dim2=2).isfinite()
    total = torch.where(mask[:, :, None] & mask[:, None, :], total, 0.0)
    return 0.5 * (total + total.mT), mask


def squares(inbox: Inbox, origin: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of :func:`gram` alone, in 1/M of the time: squared distances to ``origin`` [P, D].

    Returns:
        float64 [P, M] and the mask, as there.
    """
    mask = _cut(inbox, slice(0, 0)).mask
    total = torch.zeros(mask.shape, dtype=torch.float64)
    for columns, box in slices(inbox):
        gap = box.rows[box.index].to(torch.float64) - origin[:, None, columns].to(torch.float64)
        total += gap.square_().sum(2)
    mask = mask & total.isfinite()
    return torch.where(mask, total, 0.0), mask


def distances(products: Tensor) -> Tensor:
    """Squared distances [P, M, M] between messages, from their Gram matrices."""
    length = torch.diagonal(products, dim1=1, dim2=2)
    apart = (length[:, :, None] + length[:, None, :] - 2 * products).clamp_(min=0)
    torch.diagonal(apart, dim1=1, dim2=2).zero_()
    return apart


def _meet_often(inbox: Inbox) -> bool:
    """Whether the products of all rows, made once, are fewer than those made for each receiver."""
    rows = len(inbox.rows) + (0 if inbox.own is None else inbox.peers)
    return inbox.peers > 1 and rows**2 <= inbox.peers * (inbox.index.shape[1] + 1) ** 2


def _among_received(inbox: Inbox, origin: Tensor | None) -> tuple[Tensor, Tensor]:
    """About ``origin``, else about each receiver's own value, else (servers) the median message."""
    mask = _cut(inbox, slice(0, 0)).mask
    total = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.float64)
    for columns, box in slices(inbox):
        values = box.rows[box.index]
        if origin is not None:
            about = origin[:, columns]
        elif inbox.own is not None:
            about = inbox.own[:, columns]
        else:
            about = median(values, box.mask)
        gap = values.to(torch.float64) - about[:, None].to(torch.float64)
        total.baddbmm_(gap, gap.mT)
    return total, mask


def _among_all(inbox: Inbox) -> tuple[Tensor, Tensor]:
    """One Gram matrix of all rows, about their median, read by every receiver."""
    whole = _cut(inbox, slice(0, 0))
    rows = len(whole.rows)
    everyone, width = torch.ones(1, rows, dtype=torch.bool), max(1, BUDGET // rows)
    total = torch.zeros(rows, rows, dtype=torch.float64)
    for start in range(0, inbox.dim, width):
        values = _cut(inbox, slice(start, start + width)).rows
        gap = values.to(torch.float64) - median(values[None], everyone).to(torch.float64)
        total.addmm_(gap, gap.T)
    return total[whole.index[:, :, None], whole.index[:, None, :]], whole.mask
