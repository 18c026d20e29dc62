"""Net: the few verbs that lead from one peer to another.

Every message passes through the wire (privatise, compress, ... link ... verify, decode), and every
byte is metered there, once. A message of a peer that must not or cannot be believed (not finite, of
the wrong size, damaged) is dropped and counted; what it would have weighed stays with the receiver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from .inbox import Inbox
from .rule import Rule
from .tick import Tick

__all__ = ["Net", "Outbox"]

Tree = TypeVar("Tree")
Outbox = Mapping[int, Any]
"""What one peer says: {receiver: message}; messages are JSON-like values or bytes."""


class Net(Protocol):
    """The verbs, as a method sees them. P: this block's peers; A: aggregators in this block (0 or 1)."""

    def mix(self, x: Tree, tick: Tick, *, hop: int = 0, channel: str = "x") -> Tree:
        """Weighted neighbour average over the tick's graph, behind the run's rule.

        Args:
            x: a tensor [P, ...] or a tree of them. Leaves [P, ...] of floats pass the wire as one
                message; leaves [P] (one number per peer) travel exactly.
            hop: which of several mixes in one tick this is.
            channel: names what is sent, for wires that remember (difference coding).

        Returns:
            The same tree. Peers that are not active keep their own value.
        """

    def gather(self, x: Tensor, tick: Tick, *, channel: str = "x") -> Inbox:
        """Each active peer's message [P, D] to every neighbour; what each peer of the block got."""

    def send(self, x: Tensor, tick: Tick, src: Tensor, dst: Tensor, *, channel: str = "x") -> Inbox:
        """Messages to chosen peers: ``x`` [P, D], one message per sender, along the pairs
        ``src -> dst`` (int64 [E], global numbers); weight 1 each."""

    def pool(
        self,
        x: Tree,
        tick: Tick,
        *,
        weight: Tensor | None = None,
        to: str = "server",
        base: Tree | None = None,
        held: Tree | None = None,
        rule: Rule | None = None,
        channel: str = "x",
    ) -> Tree:
        """The active peers' values, aggregated.

        Args:
            x: [P, ...] tree; only rows of active peers count.
            weight: [P], relative weights (default equal).
            to: ``"server"``: the result is at the aggregator, leading axis A. ``"all"``: every active
                peer gets it, leading axis P (the others keep their own row).
            base: what both ends already know ([P, ...] at the peers); compression and attacks then
                act on the difference.
            held: what the aggregator held before, [A, ...]: rules clip around it, and it is the
                result where nobody was heard.
            rule: instead of the run's rule.
        """

    def collect(self, x: Tensor, tick: Tick, *, held: Tensor, channel: str = "x") -> Tensor:
        """The active peers' values at the aggregator, each in its own row.

        Args:
            x: [P, D].
            held: [A, n, D], the aggregator's table so far.

        Returns:
            [A, n, D]: the table with the rows of those who were heard replaced.
        """

    def cast(
        self,
        x: Tree,
        tick: Tick,
        *,
        to: Tensor | None = None,
        like: Tree,
        pick: Tensor | None = None,
    ) -> Tree:
        """The aggregator's value [A, ...] to the peers ``to`` (bool [n], default: the active ones).

        Args:
            like: [P, ...], what the peers hold; rows of those not reached stay so.
            pick: int64 [n]; ``x`` is then [A, V, D], V versions, and peer i gets version pick_i.
        """

    def share(self, outbox: Sequence[Outbox], tick: Tick) -> list[dict[int, Any]]:
        """Messages that are not tensors: text, clicks, votes.

        Args:
            outbox: P mappings receiver -> message. Receivers must be neighbours in the tick's graph.

        Returns:
            P dicts sender -> message, in the order of the senders' numbers.
        """

    @property
    def hosts_server(self) -> bool:
        """Whether the server's rows (leading axis A) live in this block: A is 1, else 0."""
