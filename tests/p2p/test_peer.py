"""Real peers, as ``shoal peer run`` starts them: processes with folders of their own, on loopback."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.core import BadInput, tree
from shoal.experiment import plan_of
from shoal.runtimes.base import Plan
from shoal.runtimes.p2p.crew import Crew, Hand
from shoal.runtimes.p2p.state_folder import StateFolder
from shoal.tasks.dealing import deal

SIZE = 4
LIMIT = 40.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    deal(local_plan(1).task, SIZE, 3, folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def nursery() -> Iterator[Crew]:
    with Crew() as made:
        yield made


@pytest.fixture
def crew(nursery: Crew) -> Iterator[Crew]:
    yield nursery
    for hand in nursery.hands:
        if nursery.ended(hand) is None:
            nursery.kill(hand)
    nursery.hands.clear()


def local_plan(rounds: int, **network: Any) -> Plan:
    task = {
        "name": "supervised",
        "data": "digits",
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "model": {"name": "mlp", "hidden": [8]},
        "limit": 400,
    }
    return plan_of(
        "dsgd", task=task, peers=SIZE, rounds=rounds, seed=3, every=5, dtype="float64", network=network
    )


def peer_plan(data: Path, i: int, rounds: int, **network: Any) -> dict[str, Any]:
    spec = local_plan(rounds, **network).spec()
    source = {"name": "folder", "path": str(data / f"data{i}"), "classes": 10}
    spec["task"] = {**spec["task"], "partition": "own", "data": source, "limit": 0}
    return spec


def hands(
    data: Path, root: Path, rounds: int, count: int = SIZE, *, strict: bool = False, **options: Any
) -> list[Hand]:
    shared = {
        "transport": "tcp", "host": "127.0.0.1", "period": 0.1, "linger": 15.0,
        "patience": {"strict": strict, "most_s": 20.0}, **options,
    }  # fmt: skip
    return [Hand(root / f"p{i}", peer_plan(data, i, rounds), {"seat": i, **shared}) for i in range(count)]


def start(crew: Crew, first: Hand, *others: Hand) -> str:
    """Start the first and, with a ticket of it, the others."""
    crew.start(first)
    ticket = crew.ticket(first)
    for hand in others:
        hand.options = {**hand.options, "join": [ticket]}
        crew.start(hand)
    return ticket


def until_tick(crew: Crew, hand: Hand, tick: int) -> None:
    crew.wait(lambda: int(hand.status.get("tick", 0)) >= tick, LIMIT, f"tick {tick}")


def finish(crew: Crew, *crowd: Hand) -> None:
    for hand in crowd:
        errors = hand.state / "errors"
        assert crew.join(hand, LIMIT) == 0, errors.read_text()
        assert hand.status["state"] == "done"
        assert hand.status["tick"] == hand.status["rounds"]
        assert hand.rows()[-1]["tick"] == hand.status["rounds"]
        assert hand.status["metrics"]["accuracy"] > 0.05


def model(hand: Hand) -> torch.Tensor:
    found: torch.Tensor = tree.read(hand.state / "checkpoint.safetensors")["method.x"][0]
    return found


def test_four_peers_do_what_one_process_does(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 10, strict=True)
    start(crew, *crowd)
    finish(crew, *crowd)
    report = shoal.run(local_plan(10))
    for i, hand in enumerate(crowd):
        assert float((model(hand) - report.output[i]).abs().max()) <= 1e-10
        assert hand.status["refusals"] == {}
    sent = sum(hand.status["bytes_sent"] for hand in crowd)
    assert sent == report.rows[-1]["bytes"]


def test_one_is_killed_and_comes_back_and_one_joins_late(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 80, wait=3, pace=0.1)
    ticket = start(crew, *crowd[:3])
    until_tick(crew, crowd[0], 10)
    crew.kill(crowd[1])
    assert StateFolder(crowd[1].state).running() is None
    before = model(crowd[1])
    assert before.isfinite().all()
    crowd[3].options = {**crowd[3].options, "join": [ticket]}
    crew.start(crowd[3])
    until_tick(crew, crowd[0], 25)
    key = crowd[1].status["peer"]
    crowd[1].options = {k: v for k, v in crowd[1].options.items() if k not in {"join", "seat"}}
    crew.start(crowd[1])  # without a ticket or a seat: its folder knows
    finish(crew, *crowd)
    assert crowd[1].status["seat"] == 1
    assert crowd[1].status["peer"] == key
    assert crowd[1].status["took_part"] > 5
    assert crowd[3].status["took_part"] > 5
    assert crowd[3].status["adopted"] >= 1
    ranks = [hand.status["metrics"]["accuracy"] for hand in crowd]
    assert max(ranks) - min(ranks) < 0.15


def test_a_slow_peer_takes_part_and_holds_nobody_up(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 60, pace=0.05)
    crowd[3].options = {**crowd[3].options, "pace": 0.5}
    start(crew, *crowd)
    until_tick(crew, crowd[0], 5)
    began = time.monotonic()
    until_tick(crew, crowd[0], 60)
    assert time.monotonic() - began < 0.5 * 55 / 2
    finish(crew, *crowd)
    assert 2 <= crowd[3].status["took_part"] < 40
    assert all("banned" not in reason for hand in crowd for reason in hand.status["refusals"])


def test_three_of_four_seats_are_enough(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 10, 3, wait=3)
    for hand in crowd:
        hand.options = {k: v for k, v in hand.options.items() if k != "seat"}
    start(crew, *crowd)
    finish(crew, *crowd)
    assert sorted(hand.status["seat"] for hand in crowd) == [0, 1, 2]
    # A ring of three: every one hears of the two others, and the models mix.
    for hand in crowd:
        assert hand.status["bytes_sent"] > 0
        heard = {m["seat"] for m in hand.status["members"] if m["tick"] >= 0}
        assert heard == {0, 1, 2} - {hand.status["seat"]}


def test_two_that_want_one_seat_settle(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 5)
    for hand in crowd:
        hand.options = {**hand.options, "seat": 2}
    start(crew, *crowd)
    finish(crew, *crowd)
    assert sorted(hand.status["seat"] for hand in crowd) == [0, 1, 2, 3]


def test_the_allow_list_keeps_a_stranger_out(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 10, 3)
    keys = [StateFolder(hand.state).create(hand.state.name).id for hand in crowd]
    for hand in crowd[:2]:
        hand.options = {**hand.options, "allow": keys[:2], "wait": 2}
    ticket = start(crew, crowd[0])
    crowd[1].options, crowd[2].options = ({**h.options, "join": [ticket]} for h in crowd[1:])
    crew.start(crowd[2])
    refused = f"{keys[2][:8]} not on the allow-list"
    crew.wait(lambda: refused in crowd[0].status["refusals"], LIMIT, "refusal")
    crew.start(crowd[1])
    finish(crew, *crowd[:2])
    assert crew.ended(crowd[2]) is None
    assert crowd[2].status["state"].startswith("waiting")
    for hand in crowd[:2]:
        assert keys[2] not in {m["peer"] for m in hand.status["members"]}


def test_sigterm_is_a_polite_leave(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 60, pace=0.1)
    start(crew, *crowd)
    until_tick(crew, crowd[0], 3)
    began = time.monotonic()
    crew.signal(crowd[3], signal.SIGTERM)
    assert crew.join(crowd[3], 10) == 1
    assert time.monotonic() - began < 8
    assert crowd[3].status["state"] == "stopped"
    assert model(crowd[3]).isfinite().all()
    key = crowd[3].status["peer"]

    def left() -> bool:
        return any(m["peer"] == key and m["state"] == "left" for m in crowd[0].status["members"])

    crew.wait(left, 10, "goodbye")
    finish(crew, *crowd[:3])


def test_killed_at_any_moment_its_folder_can_be_read(crew: Crew, data: Path, tmp_path: Path) -> None:
    crowd = hands(data, tmp_path, 100_000, 2, wait=1)
    alone = crowd[0]
    done = -1
    for pause in (0.0, 0.03, 0.11, 0.17, 0.23):
        crew.start(alone)
        until_tick(crew, alone, max(done, 0) + 1)
        time.sleep(pause)
        crew.kill(alone)
        for name in ("peer", "seat", "status"):
            assert StateFolder(alone.state).read(name)
        values = tree.read(alone.state / "checkpoint.safetensors")
        assert values["run.done"] > done
        done = values["run.done"]
        assert alone.rows()


def test_a_checkpoint_of_another_run_is_refused_in_one_line(crew: Crew, data: Path, tmp_path: Path) -> None:
    from shoal.runtimes.p2p.options import PeerOptions
    from shoal.runtimes.p2p.peer import Peer

    hand = hands(data, tmp_path, 3, 1, wait=1)[0]
    crew.start(hand)
    crew.join(hand, LIMIT)
    other = Plan(**peer_plan(data, 0, 3)).replace(seed=4)
    with pytest.raises(BadInput, match="checkpoint is of this run"):
        Peer(StateFolder(hand.state), other, PeerOptions())


def test_the_commands(crew: Crew, data: Path, tmp_path: Path) -> None:
    """status --json, invite's counterpart with another configuration, and export."""
    from typer.testing import CliRunner

    from shoal.cli import app
    from shoal.runtimes.p2p.ticket import Ticket

    hand = hands(data, tmp_path, 5, 1, wait=1)[0]
    crew.start(hand)
    crew.join(hand, LIMIT)
    config = tmp_path / "run.toml"
    config.write_text(
        'peers = 4\nrounds = 5\nevery = 5\nseed = 3\ndtype = "float64"\nmethod = "dsgd"\n'
        '[task]\nname = "supervised"\npartition = "own"\nmodel = {name = "mlp", hidden = [8]}\n'
        'data = {name = "folder", classes = 10}\n'
    )
    runner = CliRunner()
    told = runner.invoke(app, ["peer", "status", "--state", str(hand.state), "--json"])
    status = json.loads(told.stdout)
    assert {
        "peer", "name", "run", "state", "pid", "rounds", "seats", "tick", "took_part", "adopted", "metrics",
        "seat", "addresses", "members", "refusals", "equivocations", "bytes_sent",
        "transport_bytes",
    } == set(status)  # fmt: skip
    assert {
        "peer", "name", "seat", "state", "stage", "path", "rtt_ms", "address", "tick", "missed", "late",
    } == set(status["members"][0])  # fmt: skip
    where = ["--config", str(config), "--data", str(data / "data0"), "--state", str(hand.state)]
    out = tmp_path / "model.safetensors"
    done = runner.invoke(app, ["peer", "export", str(out), *where])
    assert done.exit_code == 0, done.output
    loaded = shoal.load_model(out)
    assert torch.equal(loaded.x[0], model(hand))
    # A ticket to a run of another configuration.
    stranger = str(Ticket("ab" * 32, ("tcp://127.0.0.1:9",), "00" * 8))
    with pytest.raises(BadInput, match="run") as wrong:
        runner.invoke(app, ["peer", "run", *where, "--join", stranger], catch_exceptions=False)
    assert "\n" not in str(wrong.value)
