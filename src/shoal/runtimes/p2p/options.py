"""How a peer takes part in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .desk import Patience
from .station import TransportName
from .ticket import Ticket
from .transport.base import PeerId

__all__ = ["PeerOptions"]


@dataclass(frozen=True)
class PeerOptions:
    """How a peer takes part; see ``shoal peer run --help``.

    Args:
        transport, host, port: what it listens on.
        join: whom to meet first.
        allow: the keys that may take part; None: everyone.
        wait: peers, this one included, that must be ready before a fresh run begins; 0: all seats.
        seat: the one wished for.
        relay: pass on connections between others.
        save_every: ticks between checkpoints.
        behind: ticks that a peer may be behind and go on from its own state; a quarter of the run so
            far, where that is more.
        period: seconds between membership probes.
        patience: see :class:`~.desk.Patience`.
        pace: seconds that the work of a tick takes at least.
        linger: seconds to stay after the last tick, at most, for those who are not through yet.
    """

    transport: TransportName = "iroh"
    host: str = "0.0.0.0"
    port: int = 0
    join: Sequence[Ticket] = ()
    allow: frozenset[PeerId] | None = None
    wait: int = 0
    seat: int | None = None
    relay: bool = False
    save_every: int = 1
    behind: int = 5
    period: float = 1.0
    patience: Patience = field(default_factory=Patience)
    pace: float = 0.0
    linger: float = 30.0
