"""``shoal relay`` as a process: its ticket, whom it serves, how it stops."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from transports import run

from shoal.experiment import plan_of
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.membership import Membership, State
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.state_folder import StateFolder
from shoal.runtimes.p2p.station import run_digest, start_climbing
from shoal.runtimes.p2p.ticket import Ticket, parse
from shoal.runtimes.p2p.transport.base import Unreachable

SHOAL = str(Path(sys.executable).with_name("shoal"))
RUN = """
peers = 2
rounds = 5
[method]
name = "dsgd"
[task]
name = "supervised"
partition = "own"
data = {name = "folder", classes = 10}
[network]
graph = "complete"
"""


@contextmanager
def relay(folder: Path, *arguments: str) -> Iterator[Ticket]:
    """A relay's process; ended with SIGTERM, which it obeys at once and without a word."""
    state = StateFolder(folder / "relay")
    state.create("relay")
    process = subprocess.Popen(
        [SHOAL, "relay", "--state", str(state.path), "--listen", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0], "no ticket within a minute"
        ticket = parse(process.stdout.readline().strip())
        assert ticket.peer == state.identity().id
        yield ticket
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def node(identity: Identity | None = None) -> AsyncIterator[tuple[Node, Identity]]:
    who = identity or Identity.create()
    made, ladder = await start_climbing(who, "iroh", "127.0.0.1")
    try:
        yield made, who
    finally:
        await ladder.stop()
        await made.stop()


async def circuit(one: Node, other: Node, ticket: Ticket) -> str:
    """Connect both with the relay, and through it with each other."""
    for each in (one, other):
        each.learn(ticket.peer, ticket.addresses)
        await each._reach(ticket.peer)
    one.learn(other.id, [f"relay://{ticket.peer}"])
    await one.adopt(await one.transports[1].dial(other.id, [f"relay://{ticket.peer}"]))
    return one.connections()[other.id].path


def test_a_bare_relay_serves_everyone(tmp_path: Path) -> None:
    async def test(ticket: Ticket) -> None:
        assert ticket.run == "" and {a.partition(":")[0] for a in ticket.addresses} == {"iroh", "tcp"}
        async with node() as (one, _), node() as (other, _):
            assert await circuit(one, other, ticket) == "relayed"

    with relay(tmp_path) as ticket:
        run(test(ticket))


def test_a_relay_of_a_run_introduces_its_peers_and_no_others(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(RUN)
    digest = run_digest(plan_of(str(config)))

    async def test(ticket: Ticket) -> None:
        assert ticket.run == digest
        async with node() as (one, i), node() as (other, j), node() as (third, k):
            members = [Membership(one, i, digest), Membership(other, j, digest)]
            stranger = Membership(third, k, "0" * 16)
            for member in (*members, stranger):
                await member.start()
            for member in members:
                assert await member.join([ticket]) == [ticket.peer]
            assert await stranger.join([ticket]) == []
            while members[0].members().keys() != {one.id, other.id, ticket.peer}:
                await members[0].join([ticket])
                await asyncio.sleep(0.05)
            met = members[0].members()
            assert met[other.id].state is State.ALIVE and met[ticket.peer].record.said.offers == ("relay",)
            assert third.id not in met and stranger.members().keys() == {third.id}
            assert await circuit(one, other, ticket) == "relayed"
            for member in (*members, stranger):
                await member.leave()

    with relay(tmp_path, "--config", str(config)) as ticket:
        run(test(ticket))


def test_a_relay_with_an_allow_list_serves_nobody_else(tmp_path: Path) -> None:
    one, other = Identity.create(), Identity.create()
    allow = tmp_path / "keys"
    allow.write_text(f"{one.id}  # the first\n\n{other.id}\n")

    async def test(ticket: Ticket) -> None:
        async with node(one) as (first, _), node(other) as (second, _), node() as (third, _):
            assert await circuit(first, second, ticket) == "relayed"
            with pytest.raises(Unreachable):
                await circuit(third, first, ticket)
            assert ticket.peer not in third.connections()

    with relay(tmp_path, "--allow", str(allow)) as ticket:
        run(test(ticket))


@pytest.mark.parametrize("text", ["nobody", "f" * 63])
def test_an_unreadable_allow_list_is_one_line(tmp_path: Path, text: str) -> None:
    StateFolder(tmp_path / "relay").create("")
    (tmp_path / "keys").write_text(text)
    done = subprocess.run(
        [SHOAL, "relay", "--state", str(tmp_path / "relay"), "--allow", str(tmp_path / "keys")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and text in done.stderr and "64 hexadecimal digits" in done.stderr
