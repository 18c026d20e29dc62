"""A real peer: it joins a run, takes a seat, trains with whom it can reach, and survives what happens.

The run's thread goes through the ticks as every runtime does; membership, seats and parcels live in the
network's event loop. Peers that are away are left out of the graph, which is built anew among those who
are there; a peer that is late or comes back goes on where its neighbours are, from its own state, or
from one of theirs where it has been away for long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Graph, RunFailed, ShoalError, Tick, tree
from shoal.runtimes.base import Plan
from shoal.runtimes.session import Session

from .desk import Desk, Patience
from .frames import Refused
from .membership import Membership
from .port import Loop, PeerPort
from .relay import Grants
from .roster import State
from .seats import Seats
from .state_folder import StateFolder
from .station import TransportName, parcel_limit, run_digest, start_climbing
from .ticket import Ticket
from .transfer import Receiver, send_blob
from .transport.base import PeerId

__all__ = ["Peer", "PeerOptions"]


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks how far a peer is."""


class Here(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ticks done; -1 before the first."""

    done: Annotated[int, Meta(ge=-1, lt=2**31)]


class Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for a peer's present state, which then comes as a blob."""


class Coming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It is on its way, and is of this many ticks done."""

    done: Annotated[int, Meta(ge=0, lt=2**31)]


@dataclass(frozen=True)
class PeerOptions:
    """How a peer takes part; see ``shoal peer run --help``.

    Args:
        transport, host, port: what it listens on.
        join: whom to meet first.
        allow: the keys that may take part; None: everyone.
        wait: peers, this one included, that must be there before a fresh run begins; 0: all seats.
        seat: the one wished for.
        relay: pass on connections between others.
        save_every: ticks between checkpoints.
        behind: ticks that a peer may be behind and go on from its own state.
        period: seconds between membership probes.
        patience: see :class:`~.desk.Patience`.
        linger: seconds to stay after the last tick, for those who are late.
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
    linger: float = 5.0


Told = Callable[[dict[str, Any]], None]
"""Given the peer's status after every tick and now and then while it waits."""


class Peer:
    """One peer of one run.

    Args:
        folder: its state.
        plan: the run.
        options: how it takes part.
        tell: see :data:`Told`.
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
        self.done = -1
        self.stopping = False
        self._wanted: dict[PeerId, asyncio.Future[bytes]] = {}
        self._copy: bytes = b""
        self._graphs: dict[tuple[int, ...], dict[int, Graph]] = {}
        self._catch = 0

    # -- the whole ----------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Take part until the last tick, or until :meth:`stop`; returns the last status."""
        self.loop = Loop()
        try:
            self.loop.run(self._connect())
            seat = self._sit()
            self._train(seat)
            self.state = "stopped" if self.stopping else "done"
            self._say()
            if not self.stopping:
                time.sleep(self.options.linger)
            self.loop.run(self._leave())
        except BaseException:
            self.state = "failed"
            self._say()
            raise
        finally:
            self.loop.close()
        return self.status()

    def stop(self) -> None:
        """Leave after the present tick."""
        self.stopping = True

    # -- coming and going -----------------------------------------------------------------------------------

    async def _connect(self) -> None:
        options = self.options
        allow = None if options.allow is None else set(options.allow) | {self.identity.id}
        grants = Grants() if options.relay else None
        self.node, self._ladder = await start_climbing(
            self.identity, options.transport, options.host, options.port, allow=allow, grants=grants
        )
        offers = ("relay",) if options.relay else ()
        kept = self.folder.read("seat")
        self.membership = Membership(
            self.node, self.identity, self.run_id, name=self.name, offers=offers, allow=allow,
            period=options.period, sequence=int(kept.get("sequence", 0)),
        )  # fmt: skip
        self.seats = Seats(self.membership, self.run_id, self.plan.peers, offers)
        self.node.serve("run/where", Where, self._on_where)
        self.node.serve("run/fetch", Fetch, self._on_fetch)
        await self.membership.start()
        known = [
            Ticket(peer, tuple(addresses), self.run_id)
            for peer, addresses in kept.get("met", {}).items()
            if peer != self.identity.id
        ]
        await self.membership.join([*options.join, *known])

    def _sit(self) -> int:
        """Claim a seat, and wait for enough others, or for a run that has begun without this peer."""
        options, wished = self.options, self.options.seat
        kept = self.folder.read("seat")
        if wished is None and kept.get("run") == self.run_id:
            wished = kept.get("seat")
        needed = options.wait or self.plan.peers
        steady, last, told = 0.0, None, 0.0
        while True:
            seat = self.loop.call(self.seats.claim, wished)
            present = self.loop.call(self.seats.present)
            now = time.monotonic()
            view = (seat, tuple(sorted(present.items())))
            if view != last:
                steady, last = now, view
            settled = seat is not None and now - steady > 1.5 * options.period
            began = settled and self._ask_where() >= 0
            if settled and (began or len(present) >= needed):
                assert seat is not None
                self._keep_seat(seat)
                return seat
            self.state = (
                f"waiting: {len(present)} of {needed} peers" if seat is not None else "waiting: no seat"
            )
            if now - told > 1:
                self._say()
                told = now
            if self.stopping:
                raise RunFailed("stopped before the run began")
            time.sleep(0.1)

    def _keep_seat(self, seat: int) -> None:
        def met() -> dict[str, list[str]]:
            members = self.membership.members().items()
            return {peer: list(member.record.addresses) for peer, member in members}

        self.folder.write("seat", {
            "run": self.run_id, "seat": seat, "sequence": self.membership.record.sequence,
            "met": self.loop.call(met),
        })  # fmt: skip

    async def _leave(self) -> None:
        await self.port.desk.close()
        await self.membership.leave()
        await self._ladder.stop()
        await self.node.stop()

    # -- the run ---------------------------------------------------------------------------------------------

    def _train(self, seat: int) -> None:
        plan, options = self.plan, self.options
        self.port = PeerPort(self.loop, seat, plan.peers)
        self.session = session = Session.open(plan, self.port)
        session.present = self._present

        def desk() -> Desk:
            away = {State.DEAD, State.LEFT}

            def gone(other: int) -> bool:
                peer = self.seats.table().get(other)
                return peer is None or self.membership.members()[peer].state in away

            return Desk(
                self.node, bytes.fromhex(self.run_id), seat, parcel_limit(session.state), options.patience,
                holder=lambda other: self.seats.table().get(other), seat=self.seats.seat, gone=gone,
            )  # fmt: skip

        self.port.desk = self.loop.call(desk)
        self._receive = self.loop.call(
            lambda: Receiver(
                self.node, lambda peer, *_: peer in self._wanted, parcel_limit(session.state), self._on_state,
                kind="state",
            )
        )  # fmt: skip
        self._take_up(session)
        self.state = "running"
        for tick in session.ticks(absent=self._absent):
            self.done = session.done
            if session.due(tick):
                self.row = session.row(tick.index, time.perf_counter() - session.started, tick)
                self.folder.append("rows", self.row)
            if session.done % options.save_every == 0 or tick.last:
                tree.save(session.saved(), self.folder.checkpoint, run=self.run_id)
            self._copy = b""
            self._say()
            if self.stopping:
                return
        tree.save(session.saved(), self.folder.checkpoint, run=self.run_id)
        self.loop.run(self.port.desk.flush(options.patience.most_s))

    def _take_up(self, session: Session) -> None:
        """Go on from this peer's own checkpoint, if it is of this run."""
        if not self.folder.checkpoint.exists():
            return
        values = tree.read(self.folder.checkpoint)
        try:
            session.restore(values, part=True)
        except BadInput:
            raise BadInput(
                "state",
                str(self.folder.path),
                "a folder whose checkpoint is of this run; take another --state",
            ) from None
        self.done = session.done

    def _absent(self, index: int) -> bool:
        """Whether the others are past this tick already. Fetches a state where they are far ahead."""
        if index < self._catch:
            return True
        neighbours = [seat for seat in self.loop.call(self.seats.present) if seat != self.port.here]
        first = self.done < 0 or (index == self.session.done and not self.row)
        ahead = self.loop.call(self.port.desk.frontier, neighbours)
        if first:
            ahead = max(ahead, self._ask_where())
        if ahead <= index + 1:
            return False
        if ahead - index > self.options.behind:
            ahead = max(ahead, self._adopt())
        self._catch = min(ahead, self.plan.rounds)
        return index < self._catch

    def _present(self, tick: Tick) -> Tick:
        """The tick among the peers that are there: their graph is that of a run of so many peers."""
        present = self.loop.call(self.seats.present)
        seats = tuple(sorted({*present, self.port.here}))
        if len(seats) == self.plan.peers:
            return tick
        alive = torch.zeros(self.plan.peers, dtype=torch.bool)
        alive[list(seats)] = True
        return tick.replace(
            active=tick.active & alive,
            alive=alive if tick.alive is None else tick.alive & alive,
            graph=self._among(seats, alive, tick),
        )

    def _among(self, seats: tuple[int, ...], alive: Tensor, tick: Tick) -> Graph:
        plan, n = self.plan, self.plan.peers
        try:
            small = plan.network.graph_at(len(seats), plan.seed, tick.index)
        except BadInput:
            # No such graph of so many peers (a hypercube of 7): the one of all, without those away.
            return tick.graph.keep(alive[tick.graph.src] & alive[tick.graph.dst])
        place = torch.tensor(seats)
        own = torch.ones(n, dtype=torch.float64)
        own[place] = small.self_weight
        graph = Graph.of(n, place[small.src], place[small.dst], small.weight, own)
        active = tick.active
        return graph.keep(active[graph.src] & active[graph.dst])

    # -- catching up -----------------------------------------------------------------------------------------

    def _ask_where(self) -> int:
        """How far the others are: the lower median of a few; -1 where none has begun."""

        async def ask() -> int:
            others = [p for s, p in self.seats.present().items() if p != self.identity.id]
            calls = [self.node.call(p, "run/where", Where(), Here, deadline=3.0) for p in others[:5]]
            told = await asyncio.gather(*calls, return_exceptions=True)
            done = sorted(t.done for t in told if isinstance(t, Here) and t.done >= 0)
            return done[(len(done) - 1) // 2] if done else -1

        return self.loop.run(ask())

    def _adopt(self) -> int:
        """Take over the state of a peer that is ahead; returns the ticks it has done, or 0."""

        async def fetch(peer: PeerId) -> bytes:
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._wanted[peer] = future
            try:
                await self.node.call(peer, "run/fetch", Fetch(), Coming, deadline=10.0)
                async with asyncio.timeout(60):
                    return await future
            finally:
                del self._wanted[peer]

        for seat, peer in self.loop.call(self.seats.present).items():
            if seat == self.port.here:
                continue
            try:
                values = tree.loads(self.loop.run(fetch(peer)))
                state = tree.load(self.session.state, values, "method")
                _same_kind(self.session.state, state)
            except (ShoalError, ValueError, TimeoutError):
                continue  # the next one may do
            self.session.state = state
            return int(values.get("run.done", 0))
        return 0

    async def _on_where(self, peer: PeerId, _: Where) -> Here:
        return Here(self.done)

    async def _on_fetch(self, peer: PeerId, _: Fetch) -> Coming:
        if self.done < 1 or self.seats.seat(peer) is None:
            raise Refused("nothing to fetch", 0.0)
        if not self._copy:
            values = {"method": self.session.state, "run": {"done": self.session.done}}
            self._copy = tree.dumps(values)
        task = asyncio.create_task(self._hand_over(peer, self._copy, self.done))
        task.add_done_callback(lambda t: t.exception())
        return Coming(self.done)

    async def _hand_over(self, peer: PeerId, state: bytes, done: int) -> None:
        key = b"state" + done.to_bytes(4, "little") + os.urandom(4)
        await send_blob(self.node, peer, key, [state], kind="state")

    async def _on_state(self, peer: PeerId, key: bytes, data: memoryview) -> None:
        future = self._wanted.get(peer)
        if future is None or future.done():
            raise Refused("not asked for")
        future.set_result(bytes(data))

    # -- what it says of itself ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything that a person wants to know of a running peer, as plain data."""
        base = {
            "peer": self.identity.id, "name": self.name, "run": self.run_id, "state": self.state,
            "pid": os.getpid(), "rounds": self.plan.rounds, "seats": self.plan.peers,
            "tick": max(self.done, 0), "metrics": _plain(self.row),
        }  # fmt: skip
        return base | (self.loop.call(self._network_status) if hasattr(self, "seats") else {})

    def _network_status(self) -> dict[str, Any]:
        connected, lag = self.node.connections(), {}
        port = getattr(self, "port", None)
        desk = getattr(port, "desk", None)
        if desk is not None:
            lag = desk.lag()
        seats = {peer: seat for seat, peer in self.seats.table().items()}
        members = []
        for peer, member in self.membership.members().items():
            link = connected.get(peer)
            seat = seats.get(peer)
            tick, missed, late = lag.get(seat, (-1, 0, 0)) if seat is not None else (-1, 0, 0)
            members.append({
                "peer": peer, "name": member.record.said.name, "seat": seat, "state": str(member.state),
                "path": None if link is None else link.path,
                "rtt_ms": None if link is None or link.rtt_s is None else round(1e3 * link.rtt_s, 2),
                "address": None if link is None else link.remote,
                "tick": tick, "missed": missed, "late": late,
            })  # fmt: skip
        session = getattr(self, "session", None)
        return {
            "seat": seats.get(self.identity.id),
            "addresses": self.node.addresses(),
            "members": members,
            "refusals": {f"{p[:8]} {why}": n for (p, why), n in self.node.refusals.items()},
            "bytes_sent": 0 if session is None else session.net.meter.total,
            "transport_bytes": 0 if desk is None else desk.wire,
        }

    def _say(self) -> None:
        told = self.status()
        self.folder.write("status", told)
        if self.tell is not None:
            self.tell(told)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if isinstance(v, int | float | str)}


def _same_kind(own: Any, other: Any) -> None:
    """Raises ValueError where a fetched state could not be this peer's own."""
    theirs = tree.leaves(other)
    for name, leaf in tree.leaves(own).items():
        if isinstance(leaf, Tensor):
            value = theirs[name]
            if not isinstance(value, Tensor) or value.dtype != leaf.dtype or value.shape != leaf.shape:
                raise ValueError(f"{name} is of another form")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} is not finite")
