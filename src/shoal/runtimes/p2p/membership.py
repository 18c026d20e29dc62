"""Who takes part, agreed by gossip: SWIM over :class:`~.node.Node`, with signed records.

Each protocol period a member probes one other (in random order, everyone once before anyone twice),
asks some others to try where no answer comes within the learned deadline, and lets rumours ride
on probes and answers. Members compare whole tables with one other now and then, which carries newcomers
in and heals partitions, and keep knocking at the doors of the dead.

Source: Das, Gupta, Motivala, "SWIM: scalable weakly-consistent infection-style process group membership
protocol" (DSN 2002). Deviations, for peers that may lie (see :mod:`.roster`): rumours of death only
cause probes; an answer through a third peer is signed by the one probed; incarnations are the sequence
numbers of signed records; death is not final. Deadlines and the period follow measured round trips.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from shoal.core import BadInput

from .gossip import RECORDS, Doubt
from .identity import Identity
from .pace import Pace
from .probe import Prober
from .records import Key, PeerRecord, Record, SignedRecord
from .records import Sequence as Number
from .roster import Member, Roster, State
from .ticket import Ticket
from .transport.base import PeerId

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Member", "Membership", "State"]

SYNC_EVERY = 8
SUSPECTS = 6
PAGE, PAGE_BYTES = 64, 40_000
LIMIT = 1 << 17

log = logging.getLogger(__name__)

Records = Annotated[tuple[SignedRecord, ...], Meta(max_length=PAGE)]
Doubts = Annotated[tuple[Doubt, ...], Meta(max_length=PAGE)]


class Sync(msgspec.Struct, forbid_unknown_fields=True):
    """My table: keys and numbers, the records that you lack, whom I cannot reach."""

    record: SignedRecord
    have: Annotated[dict[Key, Number], Meta(max_length=1024)]
    records: Records = ()
    doubts: Doubts = ()


class Synced(msgspec.Struct, forbid_unknown_fields=True):
    """What you lack, what I lack, whom I cannot reach."""

    record: SignedRecord
    records: Records
    want: Annotated[tuple[Key, ...], Meta(max_length=PAGE)]
    doubts: Doubts = ()


Callback = Callable[[PeerId, "Member | None"], Awaitable[None]]


class Membership:
    """The membership of one run, as this peer sees it.

    Args:
        node: through which everything is said. Started and stopped by its owner, outside of this.
        identity: of this peer.
        run: the run's digest: records and members of other runs are refused.
        name: what a person calls this peer.
        offers: services that it does for others, such as ``"relay"``.
        allow: the keys that may take part; None for everyone.
        period: seconds between probes; grows where measured round trips ask for it.
        capacity: the most other peers kept, 2 to 1024.
        sequence: the last record number of an earlier life, as far as it was kept.
        draw: chooses whom to probe.

    Raises:
        BadInput: a field that other peers would not accept.
    """

    def __init__(
        self,
        node: Node,
        identity: Identity,
        run: str,
        *,
        name: str = "",
        offers: Sequence[str] = (),
        allow: Iterable[PeerId] | None = None,
        period: float = 1.0,
        capacity: int = 256,
        sequence: int = 0,
        draw: random.Random | None = None,
    ) -> None:
        if not 2 <= capacity <= 1024:
            raise BadInput("membership.capacity", capacity, "2 to 1024 peers")
        if not 0 < period <= 3600:
            raise BadInput("membership.period", period, "above 0 and at most 3600 seconds")
        # A restarted peer must count on from where it was; the clock makes it likely that it does where
        # the kept number is old. Where it does not, others return the newer record, and it goes beyond.
        first = max(sequence + 1, time.time_ns() // 1_000_000)
        said = PeerRecord(identity.id, run, first, tuple(node.addresses()), name, tuple(offers), left=False)
        self.node, self._identity = node, identity
        self.draw = draw or random.Random(secrets.randbits(64))
        self.pace = Pace(period)
        self.roster = Roster(
            identity, said, refuse=node.refuse, learn=node.learn, allow=allow, capacity=capacity,
            draw=self.draw,
        )  # fmt: skip
        self._callbacks: list[Callback] = []
        self._order: list[PeerId] = []
        self._seeds: tuple[PeerId, ...] = ()
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._prober = Prober(
            node, identity, self.roster, self.pace, self.draw,
            spawn=self._spawn, revived=lambda peer: self._spawn(self._sync, peer),
        )  # fmt: skip
        node.serve("swim/sync", Sync, self._on_sync, limit=LIMIT)

    # -- for the rest of the runtime ------------------------------------------------------------------

    def members(self) -> dict[PeerId, Member]:
        """Everyone known, this peer too, by key in ascending order."""
        return self.roster.members()

    def known(self, peer: PeerId) -> bool:
        """Whether the peer is in the table, in whatever state."""
        return peer == self.record.peer or self.roster.get(peer) is not None

    @property
    def record(self) -> Record:
        """This peer's own record; keep its sequence number across restarts."""
        return self.roster.own

    def on_change(self, callback: Callback) -> None:
        """Await ``callback(peer, member)`` after a state or record has changed.

        One call at a time, in order; changes that follow each other quickly are told once, as the
        newest state. None means that the peer was dropped from a full table. An error in a callback
        is a fault of this program: it ends the membership, and :meth:`stop` raises it.
        """
        self._callbacks.append(callback)

    def announce(self, *, name: str | None = None, offers: Sequence[str] | None = None) -> None:
        """Tell everyone a new name or new services."""
        said = self.record.said
        self.roster.speak(
            name=said.name if name is None else name,
            offers=said.offers if offers is None else tuple(offers),
        )

    async def start(self) -> None:
        """Begin to probe and to answer. Rejoins after :meth:`leave`."""
        if self._task is None:
            if self.record.said.left:
                self.roster.speak(left=False)
            ready = asyncio.Event()
            self._task = asyncio.create_task(self._run(ready), name=f"membership {self.record.peer[:8]}")
            self._task.add_done_callback(_report)
            await ready.wait()

    async def join(self, contacts: Iterable[Ticket]) -> list[PeerId]:
        """Meet the run through any of these peers; the contacts that answered.

        Where none does, they are tried again in the background for as long as this peer is alone.
        """
        chosen = [contact for contact in contacts if contact.peer != self.record.peer]
        for contact in chosen:
            self.node.learn(contact.peer, contact.addresses)
        self._seeds = tuple(dict.fromkeys([*self._seeds, *(contact.peer for contact in chosen)]))
        answered = await asyncio.gather(*(self._sync(contact.peer) for contact in chosen))
        return [contact.peer for contact, yes in zip(chosen, answered, strict=True) if yes]

    async def leave(self) -> None:
        """Say goodbye to as many as a rumour needs, and stop."""
        self.roster.speak(left=True)
        others = self.roster.those(State.ALIVE)
        chosen = self.draw.sample(others, min(len(others), 8 * self.roster.spread))
        await asyncio.gather(*(self._prober.ping(peer) for peer in chosen))
        await self.stop()

    async def stop(self) -> None:
        """Stop probing. The others find this peer dead once its node is stopped too."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    # -- the protocol period --------------------------------------------------------------------------

    async def _run(self, ready: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._call_back())
                ready.set()
                while True:
                    await asyncio.sleep(self.pace.period * self.draw.uniform(0.9, 1.1))
                    self.step()
        finally:
            self._group = None

    def step(self) -> None:
        """One protocol period: count suspicions, then probe in the background."""
        roster = self.roster
        roster.tick()
        self._prober.new_period()
        if tuple(self.node.addresses()) != self.record.addresses:
            roster.speak(addresses=tuple(self.node.addresses()))
        alive, dead = roster.those(State.ALIVE), roster.those(State.DEAD)
        suspects = roster.those(State.SUSPECT)
        for peer in self.draw.sample(suspects, min(len(suspects), SUSPECTS)):
            self._prober.check(peer)
        if (target := self._next(alive)) is not None:
            self._prober.check(target)
        if dead and roster.clock % 2:
            self._prober.check(self.draw.choice(dead))
        partners = alive or [seed for seed in self._seeds if seed != self.record.peer]
        # More news than probes carry: many joined at once. Comparing tables spreads it all in log n steps.
        flooded = roster.rumours.untold(roster.spread) > 2 * RECORDS
        if partners and (flooded or not alive or roster.clock % SYNC_EVERY == 0):
            self._spawn(self._sync, self.draw.choice(partners))

    def _next(self, alive: list[PeerId]) -> PeerId | None:
        there = set(alive)
        while self._order:
            if (peer := self._order.pop()) in there:
                return peer
        self._order = self.draw.sample(alive, len(alive))
        return self._order.pop() if self._order else None

    # -- comparing tables -----------------------------------------------------------------------------

    async def _sync(self, peer: PeerId) -> bool:
        """Exchange what each lacks, page by page; whether the peer answered."""
        roster, prober = self.roster, self._prober
        wanted: tuple[PeerId, ...] = ()
        for page in range(2 + roster.capacity // PAGE):
            records = roster.records(wanted, PAGE, PAGE_BYTES)
            doubts = roster.doubts(PAGE) if page == 0 else ()
            message = Sync(self.record.signed, roster.digest(), records, doubts)
            reply = await prober.call(peer, "swim/sync", message, Synced)
            if reply is None:
                return page > 0
            prober.meet(peer, reply.record)
            news = [roster.hear(record, peer) for record in reply.records]
            prober.heed(peer, reply.doubts)
            wanted = reply.want
            if not any(news) and not wanted:
                break
        return roster.get(peer) is not None

    async def _on_sync(self, sender: PeerId, sync: Sync) -> Synced:
        roster = self.roster
        before, _ = self._prober.meet(sender, sync.record)
        member = roster.get(sender)
        if member is None:
            return Synced(self.record.signed, (), ())  # not of this run: it learns nothing
        for record in sync.records:
            roster.hear(record, sender)
        self._prober.heed(sender, sync.doubts)
        give, want = roster.newer(sync.have, PAGE, PAGE_BYTES), roster.lacking(sync.have, PAGE)
        doubts = roster.doubts(PAGE - 1)
        if before in {State.SUSPECT, State.DEAD}:
            doubts += (Doubt(sender, member.incarnation),)
        return Synced(self.record.signed, give, want, doubts)

    # -- within ---------------------------------------------------------------------------------------

    def _spawn(self, work: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
        if self._group is not None:
            self._group.create_task(work(*args))

    async def _call_back(self) -> None:
        changed = self.roster.changed
        while True:
            await self.roster.news.wait()
            self.roster.news.clear()
            while changed:
                peer = next(iter(changed))
                del changed[peer]
                member = self.roster.get(peer)
                if member is None:
                    self.pace.forget(peer)
                for callback in self._callbacks:
                    await callback(peer, member)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("membership ended", exc_info=error)
