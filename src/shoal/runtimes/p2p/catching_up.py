"""How a peer that is late, or was away, comes to where the others are.

A little behind, it leaves ticks out and goes on from its own state. Far behind, it takes over the state
of one that is ahead. Where the others are through with the run, it ends with what one of them ended with.
"""

from __future__ import annotations

import time

from shoal.runtimes.session import Session

from .copies import Copies
from .desk import Desk
from .options import PeerOptions
from .port import Loop
from .seats import Seats, Stage
from .transport.base import PeerId

__all__ = ["CatchingUp"]


class CatchingUp:
    """Which ticks this peer leaves out.

    Args:
        loop: where the others live.
        session: of this peer; its state is replaced where another's is taken over.
        here: this peer's seat.
        seats, desk, copies: as this peer sees them.
        options: how it takes part.

    Attributes:
        adopted: states taken over.
        stopping: no tick is left out any more, and nobody waited for.
    """

    def __init__(
        self,
        loop: Loop,
        session: Session,
        here: int,
        seats: Seats,
        desk: Desk,
        copies: Copies,
        options: PeerOptions,
    ) -> None:
        self.loop, self.session, self.here = loop, session, here
        self.seats, self.desk, self.copies, self.options = seats, desk, copies, options
        self.rounds = session.plan.rounds
        self.adopted = 0
        self.stopping = False
        self._until = 0

    def enter(self) -> None:
        """Learn how far the run is."""
        for seat, done in self.loop.run(self.copies.where(self._others())).items():
            self.loop.call(self.desk.tempo.heard, seat, done - 1)

    def absent(self, index: int) -> bool:
        """Whether the others are past this tick already."""
        if self.stopping:
            return False
        if index < self._until:
            return True
        if self._over():
            self._until = self.rounds if self._take_end() else index
            return index < self._until
        ahead, target = self.loop.call(self.desk.tempo.target, index, list(self._others()))
        if target > index:
            if ahead - index > max(self.options.behind, ahead // 4):
                target = max(target, self._take() - 1 + self.loop.call(self.desk.tempo.lead))
            # The last tick is not left out as long as the others are not through with it.
            self._until = min(target, self.rounds - 1)
            self.loop.call(self.desk.tempo.set_out, ahead, self._until)
        return index < self._until

    # -- inside --------------------------------------------------------------------------------------

    def _others(self) -> dict[int, PeerId]:
        present: dict[int, PeerId] = self.loop.call(self.seats.present)
        return {seat: peer for seat, peer in present.items() if seat != self.here}

    def _through(self) -> list[PeerId]:
        """Who else has done the last tick."""
        stages = self.loop.call(self.seats.stages)
        return [peer for seat, peer in self._others().items() if stages.get(seat) == Stage.DONE]

    def _over(self) -> bool:
        """Whether the others, most of them, are through: one that lies about it ends nobody's run."""
        return 2 * len(self._through()) > len(self._others())

    def _take(self) -> int:
        """Take over the state of a peer that is ahead; returns the ticks it has done, or 0."""
        others = self._others()
        told: dict[int, int] = self.loop.run(self.copies.where(others))
        best = [others[seat] for seat in sorted(told, key=lambda seat: -told[seat])]
        found = self.loop.run(self.copies.fetch(best, self.session.state))
        if found is None:
            return 0
        self.session.state, done = found
        self.adopted += 1
        return int(done)

    def _take_end(self) -> bool:
        """Take over a final state; whether there was one."""
        until = time.monotonic() + self.options.patience.most_s
        while not self.stopping and time.monotonic() < until and (through := self._through()):
            found = self.loop.run(self.copies.fetch(through, self.session.state))
            if found is not None and found[1] >= self.rounds:
                self.session.state = found[0]
                self.adopted += 1
                return True
            time.sleep(0.1)
        return False
