"""What a gather brings: every neighbour's message, without ever copying it once per receiver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Inbox"]


@dataclass(frozen=True)
class Inbox:
    """The messages that each of P receivers got, as rows shared between receivers.

    Args:
        rows: [R, D], distinct messages as decoded by their receivers (all finite).
        index: int64 [P, K], the row of each received message; padded with 0.
        sender: int64 [P, K], the sender's number; -1 where padded.
        mask: bool [P, K], False where padded, lost or refused. Senders ascend along K.
        weight: [P, K], the mixing weight of each message; 0 where masked out.
        own: [P, D], each receiver's own value, or None where the receiver has none (a server).
        own_weight: [P], the weight of ``own``.
        centre: [P, D] or None: what the receiver believed before (for rules that clip around it).
    """

    rows: Tensor
    index: Tensor
    sender: Tensor
    mask: Tensor
    weight: Tensor
    own: Tensor | None = None
    own_weight: Tensor | None = None
    centre: Tensor | None = None

    @property
    def peers(self) -> int:
        return len(self.index)

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def columns(self, budget: int = 1 << 22) -> Iterator[slice]:
        """Slices of the D columns such that ``[P, K + 1, columns]`` stays below ``budget`` floats."""
        width = max(1, budget // max(1, self.peers * (self.index.shape[1] + 1)))
        for start in range(0, self.dim, width):
            yield slice(start, min(start + width, self.dim))

    def with_own(self) -> Inbox:
        """The own value as one more message (the first): for rules that vote among all."""
        if self.own is None or self.own_weight is None:
            return self
        peers = torch.arange(self.peers)
        one = torch.ones(self.peers, 1, dtype=torch.bool)
        return Inbox(
            rows=torch.cat([self.rows, self.own]),
            index=torch.cat([peers[:, None] + len(self.rows), self.index], 1),
            sender=torch.cat([torch.full((self.peers, 1), -1), self.sender], 1),
            mask=torch.cat([one, self.mask], 1),
            weight=torch.cat([self.own_weight[:, None].to(self.weight), self.weight], 1),
            centre=self.centre if self.centre is not None else self.own,
        )

    def combine(self, coefficient: Tensor, own_coefficient: Tensor | None = None) -> Tensor:
        """Weighted sums of the messages: out_i = sum_k c_ik rows[index_ik] (+ c_i own_i).

        Args:
            coefficient: [P, K]; entries where the mask is False are ignored.
            own_coefficient: [P] or None.

        Returns:
            [P, D].
        """
        keep = self.mask & (coefficient != 0)
        receiver, slot = keep.nonzero(as_tuple=True)
        matrix = torch.sparse_coo_tensor(
            torch.stack([receiver, self.index[receiver, slot]]),
            coefficient[receiver, slot].to(self.rows.dtype),
            (self.peers, len(self.rows)),
            check_invariants=False,
        )
        out = (
            torch.sparse.mm(matrix.to_sparse_csr(), self.rows)
            if len(receiver)
            else (torch.zeros(self.peers, self.dim, dtype=self.rows.dtype))
        )
        if own_coefficient is not None and self.own is not None:
            out.addcmul_(self.own, own_coefficient[:, None].to(out))
        return out

    def mean(self) -> Tensor:
        """The weighted mean under the mixing weights: [P, D]. Nothing received: the own value."""
        return self.combine(self.weight, self.own_weight)
