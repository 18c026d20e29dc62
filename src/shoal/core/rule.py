"""Rules (how a receiver combines messages) and attacks (what hostile peers do): the contracts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .inbox import Inbox
from .part import Part, Registry
from .random import Draws

__all__ = ["Attack", "Rule", "Scene", "attacks", "rules"]


class Rule(Part):
    """Combines what each receiver of an inbox got into one value.

    Batched over receivers, padded where their numbers of messages differ. Two bases do most of the
    work without ever holding [P, K, D]: ``defend.base.Coordinatewise`` and ``defend.base.GramRule``.
    """

    plain: ClassVar[bool] = False
    """True for the weighted mean: the exchange then keeps to its fast sparse product."""

    @abstractmethod
    def __call__(self, inbox: Inbox) -> Tensor:
        """[P, D]. A receiver with too few messages for the rule keeps its own value (or, having
        none, takes the mean of what came)."""

    def least(self) -> int:
        """The least number of messages, the own value included, with which the rule can ever work."""
        return 1

    def enough(self, votes: Tensor, received: Tensor) -> Tensor:
        """Whether the rule can work with these numbers of messages: bool, the arguments' shape.

        Args:
            votes: int64, messages that take part, the own value included.
            received: int64, those that came from others.
        """
        return votes >= 1

    @staticmethod
    def count(f: float, messages: Tensor) -> Tensor:
        """How many hostile messages to assume: ``f`` itself from 1 up, else that share, rounded up."""
        if f >= 1:
            return torch.full_like(messages, int(f))
        return torch.ceil(f * messages.to(torch.float64) - 1e-9).to(messages.dtype)


@dataclass(frozen=True)
class Scene:
    """What an adversary sees when it speaks.

    Args:
        honest: [n, D], the messages that would have been sent this tick; for an attack that is not
            ``informed`` only those of one block of peers, as in all that follows.
        base: the same shape: what each message is an update of (0 where unknown).
        hostile: bool [n], the adversary's peers.
        speaking: bool [n], who sends now.
        draws: their random numbers (leading axis n).
        tick: index.
    """

    honest: Tensor
    base: Tensor
    hostile: Tensor
    speaking: Tensor
    draws: Draws
    tick: int


class Attack(Part):
    """Hostile peers act only through the wire (``message``) or through their data (``batch``)."""

    def message(self, scene: Scene) -> Tensor:
        """What is sent [n, D]; rows of honest peers must be returned unchanged."""
        return scene.honest

    def batch(
        self, x: Tensor, y: Tensor, hostile: Tensor, draws: Draws, classes: int
    ) -> tuple[Tensor, Tensor]:
        """The training batch that the peers use, x [P, B, ...], y [P, B]; hostile bool [P]."""
        return x, y

    @property
    def informed(self) -> bool:
        """Whether ``message`` needs the messages of peers other than the one that it speaks for."""
        return False

    @property
    def poisons_data(self) -> bool:
        return type(self).batch is not Attack.batch

    def probe(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, int] | None:
        """Test data on which success shows: (triggered inputs, true labels, target), or None."""
        return None


rules: Registry[Rule] = Registry("rule", "shoal.defend", Rule)
attacks: Registry[Attack] = Registry("attack", "shoal.attack", Attack)
