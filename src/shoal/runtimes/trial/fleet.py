"""Fleet: the processes of a testbed or of a live stage, and their operator's door to them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.core import RunFailed, ShoalError
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.transport.tcp import Tcp

from .monitor import Crawl
from .peer import Orders
from .trial import Deployed, Trial
from .words import PAGE, Held, News, Order, Standing

__all__ = ["Fleet", "identities"]

_PATIENCE_S = 120.0
_DEADLINE_S = 5.0


def identities(trial: Trial, seed: int) -> list[Identity]:
    """The peers' keys: of the trial and the seed, so that a run can be done again."""
    told = (f"{seed}\0{trial.name}\0{i}".encode() for i in range(trial.peers))
    return [Identity(hashlib.blake2b(t, digest_size=32).digest()) for t in told]


class Fleet:
    """Use :meth:`launch`, and always :meth:`close`.

    Args:
        trial: what is tried.
        folder: for identities and journals.
        seed: of the run.
    """

    def __init__(self, trial: Trial, folder: Path, seed: int, node: Node) -> None:
        self.trial, self.folder, self.seed, self.node = trial, folder, seed, node
        self.people = identities(trial, seed)
        self.ids = [who.id for who in self.people]
        self.addresses: dict[str, list[str]] = {}
        self.starts: Counter[int] = Counter()
        self.up: set[int] = set()
        self.flags: dict[int, Deployed] = dict.fromkeys(range(trial.peers), trial.old)
        self.working = False
        self._turn = asyncio.Lock()
        # An unbuffered pipe in either direction: one line, one answer.
        self.nursery = subprocess.Popen(
            [sys.executable, "-m", "shoal.runtimes.trial.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    @classmethod
    async def launch(cls, trial: Trial, folder: Path, seed: int) -> Fleet:
        """Every peer started, all on the old version, none at work yet."""
        operator = Identity.create()
        node = Node(operator, [await Tcp.listen(operator)])
        await node.start()
        fleet = cls(trial, folder, seed, node)
        try:
            for index, who in enumerate(fleet.people):
                home = fleet.home(index)
                home.mkdir(parents=True)
                who.save(home)
            await fleet.start(range(trial.peers))
            await fleet.tell(range(trial.peers))
        except BaseException:
            await fleet.close()
            raise
        return fleet

    def home(self, index: int) -> Path:
        return self.folder / f"peer-{index:03d}"

    async def close(self) -> None:
        """End every process."""
        assert self.nursery.stdin is not None and self.nursery.stdout is not None
        self.nursery.stdin.close()
        try:
            await asyncio.to_thread(self.nursery.wait, _DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.nursery.kill()
            self.nursery.wait()
        self.nursery.stdout.close()
        await self.node.stop()

    async def start(self, which: Iterable[int]) -> None:
        """Start peers, as often as it takes, and learn where they are.

        Raises:
            RunFailed: one of them does not come up.
        """
        started = list(which)
        trial, faults = self.trial, self.trial.faults
        for index in started:
            self.starts[index] += 1
            orders = Orders(
                str(self.home(index)), index, self.ids, self.node.id, self.addresses, self.seed,
                self.starts[index], trial.chunk, trial.chunks, trial.concurrency, trial.deadline_s,
                faults.delay_s, faults.loss,
            )  # fmt: skip
            await self._nurse({"start": asdict(orders)})
        try:
            async with asyncio.timeout(_PATIENCE_S):
                for index in started:
                    while (where := self._ready(index)) is None:
                        await asyncio.sleep(0.02)
                    self.addresses[self.ids[index]] = where
                    self.node.learn(self.ids[index], where)
        except TimeoutError:
            late = [i for i in started if self._ready(i) is None]
            errors = self.home(late[0]) / "errors"
            told = errors.read_text().strip().splitlines() if errors.exists() else []
            raise RunFailed(f"peers {late} did not start: {told[-1] if told else 'no word'}") from None
        self.up |= set(started)

    async def kill(self, index: int) -> None:
        """SIGKILL, as from a power cut."""
        self.up.discard(index)
        await self._nurse({"kill": index})

    async def tell(self, which: Iterable[int]) -> dict[int, Standing]:
        """Give each of these peers the orders that stand; who does not answer is told again later."""
        order = {i: Order(self.flags[i], self.working, self.addresses) for i in which if i in self.up}

        async def one(index: int) -> tuple[int, Standing] | None:
            try:
                return index, await self.node.call(
                    self.ids[index], "trial/order", order[index], Standing, deadline=_DEADLINE_S
                )
            except (ShoalError, TimeoutError):
                return None

        told = await asyncio.gather(*(one(i) for i in order))
        return dict(t for t in told if t is not None)

    async def tell_all(self) -> dict[int, Standing]:
        """As :meth:`tell`, until every peer has answered.

        Raises:
            RunFailed: one never does.
        """
        standing: dict[int, Standing] = {}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while len(standing) < self.trial.peers:
                    standing |= await self.tell([i for i in self.flags if i not in standing])
        except TimeoutError:
            silent = sorted(self.flags.keys() - standing.keys())
            raise RunFailed(f"peers {silent} do not answer their operator") from None
        return standing

    async def crawl(self, crawl: Crawl) -> None:
        """Pull what is missing from every peer that answers; what is not signed is refused there."""

        async def one(index: int) -> None:
            while True:
                held = Held(crawl.log.versions(0))
                try:
                    news = await self.node.call(
                        self.ids[index], "trial/records", held, News, deadline=_DEADLINE_S
                    )
                    crawl.take(index, news.records)
                    if all(len(records) < PAGE for _, _, records in news.records):
                        return
                except (ShoalError, TimeoutError):  # away, or refused: it will be asked again
                    return

        await asyncio.gather(*(one(i) for i in sorted(self.up)))

    def _ready(self, index: int) -> list[str] | None:
        try:
            told = json.loads((self.home(index) / "ready.json").read_text())
        except FileNotFoundError:
            return None
        return told["addresses"] if told["start"] == self.starts[index] else None

    async def _nurse(self, order: dict[str, Any]) -> Any:
        def ask() -> str:
            assert self.nursery.stdin is not None and self.nursery.stdout is not None
            self.nursery.stdin.write(json.dumps(order) + "\n")
            self.nursery.stdin.flush()
            return self.nursery.stdout.readline()

        try:
            async with self._turn:
                answer = await asyncio.to_thread(ask)
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RunFailed("the process that starts the peers has ended")
        return json.loads(answer)
