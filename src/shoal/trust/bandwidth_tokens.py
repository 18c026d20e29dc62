"""112 Bandwidth tokens: bytes given and taken, written down as half-blocks that both parties sign.

Source: the mechanism of the trials in "A Deployment-First Methodology to Mechanism Design and
Refinement in Distributed Systems" (PerCom workshops 2023, arXiv 2301.04508), after the bandwidth
accounting of Tribler: who takes bytes proposes a half-block, who gave them answers with the other half.

Two versions of one mechanism, pure logic without clock, network or randomness. ``v1`` keeps one
running balance that a proposal names and that holds once both have signed, and answers whatever it is
asked: right as long as one thing happens at a time and nothing is said twice. ``v2`` counts each pair
and direction by itself, has one proposal under way in each, and answers a proposal that it has answered
before with the same half. What v2's tokens are worth is capped by :mod:`shoal.trust.mint_cap`.

An account changes only by its three events (:meth:`Account.owe`, :meth:`Account.write`,
:meth:`Account.hear`), so that a journal of them, replayed, is the account again. Amounts are bytes,
parties are numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from shoal.core import BadInput

__all__ = ["Account", "Half", "Paired", "Running", "Version", "account", "read_half"]

Version = Literal["v1", "v2"]
_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Half(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One party's half of a block.

    Args:
        version: of the mechanism.
        side: what this party did.
        partner: the other party.
        amount: bytes.
        number: names the transfer: in v1 the taker's count of its proposals to anyone, in v2 the count
            in this pair and direction; the giver's half bears the number of the taker's.
        total: v1: the signer's balance after it; v2: the bytes of this pair and direction after it.
    """

    version: Version
    side: Literal["take", "give"]
    partner: Annotated[int, Meta(ge=0)]
    amount: Annotated[int, Meta(gt=0, lt=1 << 62)]
    number: _Count
    total: Annotated[int, Meta(gt=-(1 << 62), lt=1 << 62)]

    def plain(self) -> list[Any]:
        """As a log entry: a list of numbers and texts."""
        return msgspec.to_builtins(self)

    def message(self, signer: int) -> bytes:
        """What ``signer`` signs when it hands the half to its partner."""
        return msgspec.msgpack.encode([signer, self])


def read_half(value: Any) -> Half:
    """A half-block from what came from another peer.

    Raises:
        BadInput: it is none.
    """
    try:
        return msgspec.convert(value, Half, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput("half", value, str(error).lower()) from None


class Account(msgspec.Struct):
    """What one party holds: ``owed`` are bytes taken that no proposal covers yet, by giver."""

    owed: dict[int, int] = {}

    # -- events ----------------------------------------------------------------------------------------

    def owe(self, giver: int, amount: int) -> None:
        """``amount`` bytes came from ``giver``."""
        self.owed[giver] = self.owed.get(giver, 0) + amount

    @abstractmethod
    def write(self, half: Half) -> None:
        """An own half, from :meth:`propose` or :meth:`answer`, is signed and on the log."""

    @abstractmethod
    def hear(self, giver: int, half: Half) -> None:
        """The giver's half of an own proposal has come. What is known already changes nothing.

        Raises:
            BadInput: it answers no proposal of ours.
        """

    # -- what to say (nothing changes) -------------------------------------------------------------------

    @abstractmethod
    def propose(self, giver: int) -> Half | None:
        """The half that covers what is owed to ``giver``, or None where none can be made now."""

    @abstractmethod
    def answer(self, taker: int, proposal: Half) -> tuple[Half, bool]:
        """The half to give back, and whether it is new (to be written before it is sent).

        Raises:
            BadInput: the proposal is not one that can be accepted.
        """

    @abstractmethod
    def unanswered(self, giver: int) -> list[Half]:
        """Own proposals to ``giver`` that have to be sent, or sent again."""

    @abstractmethod
    def owing(self) -> list[int]:
        """The givers that have own proposals to answer, or bytes that no proposal covers yet."""

    @property
    @abstractmethod
    def worth(self) -> int:
        """Bytes given less bytes taken, as this account has it."""

    # -- as data -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data that :meth:`of` makes the account from again."""
        return msgspec.to_builtins(self, str_keys=True)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        return msgspec.convert(state, cls, str_keys=True)

    def digest(self) -> bytes:
        """The account bit for bit, the same for equal accounts."""
        return msgspec.json.encode(self.state(), order="deterministic")

    def _cover(self, half: Half) -> None:
        left = self.owed.get(half.partner, 0) - half.amount
        if left:
            self.owed[half.partner] = left
        else:
            self.owed.pop(half.partner, None)


class Running(Account):
    """v1: one balance for all partners.

    Args:
        balance: after the last half that holds.
        next: the number of the next proposal.
        open: proposals that wait for the giver's half, by number.
    """

    balance: int = 0
    next: int = 0
    open: dict[int, Half] = {}

    def write(self, half: Half) -> None:
        if half.side == "give":
            self.balance = half.total
            return
        self._cover(half)
        self.next = half.number + 1
        self.open[half.number] = half

    def hear(self, giver: int, half: Half) -> None:
        mine = self.open.get(half.number)
        if mine is None:
            return
        _fits(giver, mine, half)
        del self.open[half.number]
        self.balance = mine.total

    def propose(self, giver: int) -> Half | None:
        amount = self.owed.get(giver, 0)
        if amount == 0:
            return None
        return Half("v1", "take", giver, amount, self.next, self.balance - amount)

    def answer(self, taker: int, proposal: Half) -> tuple[Half, bool]:
        _acceptable("v1", proposal)
        amount = proposal.amount
        return Half("v1", "give", taker, amount, proposal.number, self.balance + amount), True

    def unanswered(self, giver: int) -> list[Half]:
        return [half for half in self.open.values() if half.partner == giver]

    def owing(self) -> list[int]:
        return sorted({*self.owed, *(half.partner for half in self.open.values())})

    @property
    def worth(self) -> int:
        return self.balance


class Paired(Account):
    """v2: every pair and direction by itself, one proposal under way in each.

    Args:
        taken: the last own proposal that is settled, by giver.
        waiting: the one that is not, by giver.
        given: the last answer, by taker.
    """

    taken: dict[int, Half] = {}
    waiting: dict[int, Half] = {}
    given: dict[int, Half] = {}

    def write(self, half: Half) -> None:
        if half.side == "give":
            self.given[half.partner] = half
            return
        self._cover(half)
        self.waiting[half.partner] = half

    def hear(self, giver: int, half: Half) -> None:
        last, mine = self.taken.get(giver), self.waiting.get(giver)
        if last is not None and half.number <= last.number:
            return
        if mine is None or half.total != mine.total:
            raise BadInput("half", half.plain(), "the other half of a proposal of ours")
        _fits(giver, mine, half)
        self.taken[giver] = self.waiting.pop(giver)

    def propose(self, giver: int) -> Half | None:
        amount = self.owed.get(giver, 0)
        if amount == 0 or giver in self.waiting:
            return None
        number, total = _after(self.taken.get(giver))
        return Half("v2", "take", giver, amount, number, total + amount)

    def answer(self, taker: int, proposal: Half) -> tuple[Half, bool]:
        _acceptable("v2", proposal)
        last = self.given.get(taker)
        mine = Half("v2", "give", taker, proposal.amount, proposal.number, proposal.total)
        if mine == last:
            return mine, False
        number, total = _after(last)
        if proposal.number != number or proposal.total != total + proposal.amount:
            raise BadInput("half", proposal.plain(), f"number {number}, from {total} bytes on")
        return mine, True

    def unanswered(self, giver: int) -> list[Half]:
        return [self.waiting[giver]] if giver in self.waiting else []

    def owing(self) -> list[int]:
        return sorted({*self.owed, *self.waiting})

    @property
    def worth(self) -> int:
        return sum(h.total for h in self.given.values()) - sum(h.total for h in self.taken.values())


_KINDS: dict[str, type[Running] | type[Paired]] = {"v1": Running, "v2": Paired}


def account(version: Version, state: dict[str, Any] | None = None) -> Account:
    """An account of a version of the mechanism: a fresh one, or the one that had this state."""
    kind = _KINDS.get(version)
    if kind is None:
        raise BadInput("version", version, f"one of {', '.join(_KINDS)}")
    return kind() if state is None else kind.of(state)


def _after(last: Half | None) -> tuple[int, int]:
    """The number and the bytes that the next half of a pair goes on from."""
    return (0, 0) if last is None else (last.number + 1, last.total)


def _acceptable(version: Version, proposal: Half) -> None:
    if proposal.version != version or proposal.side != "take":
        raise BadInput("half", proposal.plain(), f"a proposal of {version}")


def _fits(giver: int, mine: Half, theirs: Half) -> None:
    answer = (theirs.version, theirs.side, theirs.number, theirs.amount)
    if mine.partner != giver or answer != (mine.version, "give", mine.number, mine.amount):
        raise BadInput("half", theirs.plain(), "the other half of a proposal of ours")
