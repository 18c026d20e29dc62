"""The two kinds of robust rules: coordinate-wise, and weights from Gram matrices.

Neither holds the messages [P, K, D] of all receivers at once; both are batched over receivers whose
numbers of messages differ. A receiver's own value, where it has one, takes part as one more message.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Inbox, Rule

from .gram import gram, slices

__all__ = ["Bounded", "Coordinatewise", "GramRule", "Robust", "shares"]


def shares(mask: Tensor, weight: Tensor) -> Tensor:
    """Mixing weights made to sum to 1 over what came: float64 [P, M].

    Where they sum to 0, the messages count alike; a row without messages is 0.
    """
    weight = torch.where(mask, weight.to(torch.float64), 0.0)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, mask.to(torch.float64))
    return weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


class Robust(Rule):
    """What all robust rules share: how many messages they need, and what happens below that."""

    def enough(self, votes: Tensor, received: Tensor) -> Tensor:
        """Whether the rule can work: bool, the shape of the arguments.

        Args:
            votes: int64, messages that take part, the own value included.
            received: int64, those that came from others (any of which may be hostile).
        """
        return votes >= 1

    def least(self) -> int:
        """The least number of messages, the own value included, with which the rule can ever work.

        A network in which no receiver can get so many refuses the rule.
        """
        return 1

    @staticmethod
    def fallback(inbox: Inbox) -> Tensor:
        """[P, D] for receivers with too few messages: the own value; without one the weighted mean of
        what came; without that what was believed before (``centre``), or 0."""
        if inbox.own is not None:
            return inbox.own
        mean = inbox.combine(shares(inbox.mask, inbox.weight))
        if inbox.centre is None:
            return mean
        return torch.where(inbox.mask.any(1)[:, None], mean, inbox.centre)

    @staticmethod
    def _complete(inbox: Inbox) -> Inbox:
        """An own value without a weight takes part and weighs 0."""
        if inbox.own is None or inbox.own_weight is not None:
            return inbox
        return replace(inbox, own_weight=torch.zeros(inbox.peers, dtype=inbox.rows.dtype))

    def _settle(self, out: Tensor, enough: Tensor, inbox: Inbox) -> Tensor:
        return out if bool(enough.all()) else torch.where(enough[:, None], out, self.fallback(inbox))


@dataclass(frozen=True)
class Bounded(Robust):
    """Rules that assume at most f hostile messages among those received.

    Args:
        f: a number from 1 up, or a share of the messages received, below 1/2 (rounded up); 0: none.
    """

    factor: ClassVar[int] = 2
    """Messages needed: ``factor`` * f + ``margin``."""
    margin: ClassVar[int] = 1

    f: Annotated[float, Meta(ge=0)] = 0.2

    def check(self) -> None:
        if (self.f >= 1 and not self.f.is_integer()) or 1 / self.factor <= self.f < 1:
            raise BadInput("f", self.f, f"a whole number, or a share in [0, {1 / self.factor:g})")

    def enough(self, votes: Tensor, received: Tensor) -> Tensor:
        return votes >= self.factor * self.count(self.f, received) + self.margin

    def least(self) -> int:
        if self.f >= 1:
            return self.factor * int(self.f) + self.margin
        start = int(self.margin / (1 - self.factor * self.f))
        return next(
            n for n in itertools.count(start) if bool(self.enough(torch.tensor(n), torch.tensor(n)))
        )


class Coordinatewise(Robust):
    """A rule that treats each coordinate on its own."""

    @abstractmethod
    def reduce(self, values: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        """Combine the messages of each receiver.

        Args:
            values: [P, K, C], some columns of the messages, the own value first where there is one.
            mask: bool [P, K].
            weight: [P, K], mixing weights.
            received: int64 [P], how many of the messages came from others.

        Returns:
            [P, C]; anything for receivers with too few messages.
        """

    def __call__(self, inbox: Inbox) -> Tensor:
        inbox = self._complete(inbox)
        received = inbox.mask.sum(1)
        enough = self.enough(received + (inbox.own is not None), received)
        if not bool(enough.any()):
            return self.fallback(inbox)
        out = torch.empty(inbox.peers, inbox.dim, dtype=inbox.rows.dtype)
        for columns, box in slices(inbox):
            out[:, columns] = self.reduce(box.rows[box.index], box.mask, box.weight, received)
        return self._settle(out, enough, inbox)


class GramRule(Robust):
    """A rule whose result is a combination of the messages, decided from their Gram matrices."""

    def origin(self, inbox: Inbox) -> Tensor | None:
        """[P, D]: the point about which the products are taken and at which what the coefficients lack
        to 1 stays; None where the rule depends on distances alone and its coefficients sum to 1."""
        return None

    def products(self, inbox: Inbox, origin: Tensor | None) -> tuple[Tensor, Tensor]:
        """What :meth:`weights` decides from, [P, M, ...], and the mask, bool [P, M]."""
        return gram(inbox, origin)

    @abstractmethod
    def weights(self, products: Tensor, mask: Tensor, weight: Tensor, received: Tensor) -> Tensor:
        """The coefficient of each message.

        Args:
            products: float64 [P, M, M] from :func:`shoal.defend.gram.gram`; M = K + 1 with the own
                value first where there is one, else K.
            mask: bool [P, M].
            weight: [P, M], mixing weights.
            received: int64 [P], how many of the messages came from others.

        Returns:
            float64 [P, M]; anything for receivers with too few messages.
        """

    def __call__(self, inbox: Inbox) -> Tensor:
        inbox = self._complete(inbox)
        own = int(inbox.own is not None)
        if not bool(self.enough(inbox.mask.sum(1) + own, inbox.mask.sum(1)).any()):
            return self.fallback(inbox)
        origin = self.origin(inbox)
        products, mask = self.products(inbox, origin)
        received, weight = mask[:, own:].sum(1), inbox.weight
        if own and inbox.own_weight is not None:
            weight = torch.cat([inbox.own_weight[:, None].to(weight), weight], 1)
        coefficient = self.weights(products, mask, weight, received)
        out = inbox.combine(coefficient[:, own:], coefficient[:, 0] if own else None)
        if origin is not None:
            out.addcmul_(origin, (1 - coefficient.sum(1))[:, None].to(out))
        return self._settle(out, self.enough(received + own, received), inbox)
