"""A real peer: it joins a run, takes a seat, trains with whom it can reach, and survives what happens.

The run's thread goes through the ticks as every runtime does; membership, seats and parcels live in the
network's event loop. Peers that are away are left out of the graph, which is built anew among those who
are there; a peer that is late or comes back goes on where its neighbours are, from its own state, or
from one of theirs where it has been away for long. Strict peers do nothing of this: they wait for each
other, and the run is that of one process bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shoal.core import BadInput, Tick, tree
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .catching_up import CatchingUp
from .company import Company
from .copies import Copies
from .desk import Desk
from .membership import Membership
from .node import Node
from .options import PeerOptions
from .port import Loop, PeerPort
from .relay import Grants
from .seats import Seats, Stage
from .state_folder import StateFolder
from .station import parcel_limit, run_digest, start_climbing
from .status import network_status, status_of
from .ticket import Ticket
from .witness import Witness

__all__ = ["Peer", "PeerOptions"]

Told = Callable[[dict[str, Any]], None]
"""Given the peer's status after ticks and now and then while it waits."""

SAY_S = 0.25
"""Seconds between two reports of its status, at least."""


class Peer:
    """One peer of one run.

    Args:
        folder: its state.
        plan: the run.
        options: how it takes part.
        tell: see :data:`Told`.

    Raises:
        BadInput: its folder, its data or its checkpoint do not go with the run; nobody has been met yet.
    """

    def __init__(
        self, folder: StateFolder, plan: Plan, options: PeerOptions, tell: Told | None = None
    ) -> None:
        self.folder, self.plan, self.options, self.tell = folder, plan, options, tell
        self.identity = folder.identity()
        self.run_id = run_digest(plan)
        self.name = str(folder.read("peer").get("name", ""))
        self.state = "starting"
        self.row: dict[str, Any] = {}
        self.began = self.stopping = False
        self.took_part = 0
        self.catching_up: CatchingUp | None = None
        self._said = 0.0
        self._last: dict[str, Any] = {}
        self._connected = False
        kept = folder.read("seat")
        self._kept = kept if kept.get("run") == self.run_id else {}
        wished = options.seat if options.seat is not None else self._kept.get("seat")
        self._wished = wished if isinstance(wished, int) and 0 <= wished < plan.peers else None
        self.loop = Loop()
        self._open(self._wished or 0)

    # -- the whole -------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Take part until the last tick, or until :meth:`stop`; returns the last status."""
        try:
            self.loop.run(self._connect())
            over = False
            while not over and not self.stopping:
                self._sit()
                over = not self.stopping and self._train()
            if not self.stopping:
                self.state = "through, staying for others"
                self._say(at_once=True)
                self._linger()
            self.state = "done" if over else "stopped"
            self._say(at_once=True)
        except BaseException:
            self.state = "failed"
            self._say(at_once=True)
            raise
        finally:
            if self._connected:
                self.loop.run(self._leave())
            self.loop.close()
        return status_of(self) | self._last

    def stop(self) -> None:
        """Leave after the present tick, without waiting for anybody any more. May be called anywhere."""
        self.stopping = True
        if self.catching_up is not None:
            self.catching_up.stopping = True
        if self._connected:
            self.loop.loop.call_soon_threadsafe(self.desk.hurry)

    # -- coming and going ------------------------------------------------------------------------------

    def _open(self, seat: int) -> None:
        """Open the run as the holder of a seat, where this peer left it."""
        self.port = PeerPort(self.loop, seat, self.plan.peers, self.options.pace)
        self.session = Session.open(self.plan, self.port)
        self._take_up()

    def _take_up(self) -> None:
        """Go on from this peer's own checkpoint, if it is of this run."""
        if not self.folder.checkpoint.exists():
            return
        values, session = tree.read(self.folder.checkpoint), self.session
        try:
            session.restore(values, part=True)
        except BadInput:
            raise BadInput(
                "state", str(self.folder.path), "a folder whose checkpoint is of this run; take another one"
            ) from None
        if values.get("peer.seat", self.port.here) != self.port.here:
            # What it remembers of exchanges was another seat's.
            fresh = Session.open(self.plan, self.port)
            fresh.state, fresh.clocks, fresh.done = session.state, session.clocks, session.done
            self.session = fresh

    async def _connect(self) -> None:
        options = self.options
        allow = None if options.allow is None else set(options.allow) | {self.identity.id}
        grants = Grants() if options.relay else None
        limit = parcel_limit(self.session.state)

        def prepare(node: Node) -> None:
            # All that others may ask for is there before the first of them can.
            offers = ("relay",) if options.relay else ()
            self.node = node
            self.membership = Membership(
                node, self.identity, self.run_id, name=self.name, offers=offers, allow=allow,
                period=options.period, sequence=int(self._kept.get("sequence", 0)),
            )  # fmt: skip
            self.seats = seats = Seats(self.membership, self.run_id, self.plan.peers, offers)
            witness = Witness(
                node, self.identity, bytes.fromhex(self.run_id), others=seats.fellows, seated=seats.holders,
                kept=self.folder.path / "spoken",
            )  # fmt: skip
            self.desk = self.port.desk = Desk(
                node, bytes.fromhex(self.run_id), self.port.here, limit, options.patience,
                holder=seats.holder, seat=seats.seat, gone=seats.away, known=self.membership.known,
                witness=None if options.patience.strict else witness,
            )  # fmt: skip
            self.copies = Copies(
                node, limit, done=lambda: self.session.done if self.began else -1,
                entitled=lambda peer: seats.seat(peer) is not None,
            )  # fmt: skip

        self.node, self._ladder = await start_climbing(
            self.identity, options.transport, options.host, options.port,
            allow=allow, grants=grants, prepare=prepare,
        )  # fmt: skip
        self._connected = True
        await self.membership.start()
        met = self._kept.get("met", {})
        known = [Ticket(peer, tuple(where), self.run_id) for peer, where in met.items()]
        await self.membership.join([*options.join, *known])

    def _sit(self) -> None:
        """Hold a seat, be ready, and wait for enough others who are, or for a run that has begun."""
        options, finished = self.options, self.session.done >= self.plan.rounds
        needed = options.wait or self.plan.peers
        steady, last = time.monotonic(), None
        while not self.stopping:
            seat = self.loop.call(self.seats.claim, self._wished)
            stages = self.loop.call(self.seats.stages)
            table = self.loop.call(self.seats.table)
            now = time.monotonic()
            if (seat, table) != last:
                steady, last = now, (seat, table)
            if seat is not None and now - steady > 1.5 * options.period:
                self._ready(seat)
                others = [stage for other, stage in stages.items() if other != seat]
                begun = sum(stage in {Stage.BEGUN, Stage.DONE} for stage in others)
                there = sum(stage != Stage.COMING for stage in stages.values())
                if finished or 2 * begun > len(others) or (there >= needed and seat in stages):
                    self.began = True
                    self.loop.call(self.seats.say, Stage.BEGUN)
                    return
                self.state = f"waiting: {there} of {needed} peers are ready{self._strangers()}"
            else:
                self.state = "waiting: no seat is free" if seat is None else "waiting: taking a seat"
            self._say()
            time.sleep(0.05)

    def _ready(self, seat: int) -> None:
        if self.loop.call(lambda: self.seats.stage) != Stage.COMING and seat == self.port.here:
            return
        if seat != self.port.here:
            self._open(seat)
            self.port.desk = self.desk
            self.loop.call(self.desk.sit, seat)
        self._keep_seat(seat)
        self.loop.call(self.seats.say, Stage.READY)

    def _strangers(self) -> str:
        refusals = self.loop.call(lambda: list(self.node.refusals))
        count = len({peer for peer, why in refusals if why == "record of another run"})
        return f"; {count} of another run (another configuration) called" if count else ""

    def _keep_seat(self, seat: int) -> None:
        def met() -> dict[str, list[str]]:
            members = self.membership.members().items()
            return {p: list(m.record.addresses) for p, m in members if p != self.identity.id}

        self.folder.write("seat", {
            "run": self.run_id, "seat": seat, "sequence": self.membership.record.sequence,
            "met": self.loop.call(met),
        })  # fmt: skip

    def _linger(self) -> None:
        """Stay for those who are not through yet: they may want this peer's state."""
        until, quiet = time.monotonic() + self.options.linger, time.monotonic() + self.options.period
        while not self.stopping and time.monotonic() < until:
            stages = self.loop.call(self.seats.stages)
            if all(stage == Stage.DONE for stage in stages.values()) and time.monotonic() > quiet:
                return
            self._hand_out()
            self._say()
            time.sleep(0.05)

    async def _leave(self) -> None:
        await self.copies.flush(1.0 if self.stopping else self.options.patience.most_s)
        await self.desk.close()
        await self.membership.leave()
        await self._ladder.stop()
        await self.node.stop()

    # -- the run ---------------------------------------------------------------------------------------

    def _train(self) -> bool:
        """Go through the ticks; whether this was the end, and not only of this seat's."""
        session, options = self.session, self.options
        self.state, here, absent = "running", self.port.here, None
        if session.done == 0:
            self._measure(None)
        if not options.patience.strict:
            session.present = Company(self.loop, self.plan, here, self.seats, self.desk).present
            self.catching_up = CatchingUp(
                self.loop, session, here, self.seats, self.desk, self.copies, options
            )
            self.catching_up.enter()
            absent = self.catching_up.absent
        for tick in session.ticks(absent):
            self.took_part += 1
            if session.due(tick):
                self._measure(tick)
            if session.done % options.save_every == 0 or tick.last:
                self._save()
            self._hand_out()
            self._say()
            if self.stopping or self.loop.call(self.seats.seat, self.identity.id) != here:
                self._save()
                return False  # the end, or somebody else holds this seat now
        if not self.row or self.row["tick"] != session.done:  # it came late to the end
            self._measure(None)
        self._save()
        # Whoever hears that this peer is done waits for nothing more of it.
        self.loop.run(self.desk.flush(options.patience.most_s))
        self.loop.call(self.seats.say, Stage.DONE)
        return True

    def _measure(self, tick: Tick | None) -> None:
        session = self.session
        self.row = session.row(session.done - 1, time.perf_counter() - session.started, tick)
        self.folder.append("rows", self.row)

    def _save(self) -> None:
        tree.save(
            self.session.saved() | {"peer": {"seat": self.port.here}},
            self.folder.checkpoint,
            run=self.run_id,
        )

    def _hand_out(self) -> None:
        if self.copies.asked and self.session.done > 0:
            values = {"method": self.session.state, "run": {"done": self.session.done}}
            self.loop.run(self.copies.hand_out(tree.dumps(values)))

    @property
    def adopted(self) -> int:
        """States taken over from others."""
        return 0 if self.catching_up is None else self.catching_up.adopted

    # -- what it says of itself ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything that a person wants to know of a running peer, as plain data."""
        if self._connected:
            self._last = self.loop.call(network_status, self)
        return status_of(self) | self._last

    def _say(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._said < SAY_S:
            return
        self._said = now
        told = self.status()
        self.folder.write("status", told)
        if self.tell is not None:
            self.tell(told)
