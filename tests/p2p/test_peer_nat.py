"""``shoal peer run`` behind NATs: one run, the paths between its peers, one that moves."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import Kind, Lab, Space, missing

from shoal import load_model
from shoal.experiment import plan_of
from shoal.peering import export
from shoal.runtimes.p2p.state_folder import StateFolder
from shoal.runtimes.p2p.station import run_digest
from shoal.runtimes.p2p.ticket import Ticket

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
SHOAL = str(Path(sys.executable).with_name("shoal"))
KINDS: dict[str, Kind | None] = {
    "open": None,
    "cone 1": "cone",
    "cone 2": "cone",
    "symmetric 1": "symmetric",
    "symmetric 2": "symmetric",
}
TEST, OWN = 300, 250
RUN = """
peers = 5
rounds = 100_000
every = 2
seed = 3
[method]
name = "dsgd"
local_steps = 5
[task]
name = "supervised"
partition = "own"
model = {name = "mlp", hidden = [32]}
data = {name = "folder", classes = 10}
[network]
graph = "complete"
codec = "int8"
"""


def paths_of(one: str, other: str) -> set[str]:
    """By which paths two of the peers may be connected."""
    kinds = {KINDS[one], KINDS[other]}
    if None in kinds:
        return {"direct"}  # whoever is behind a NAT dials, asked to where the other wants it
    return {"punched", "direct"} if kinds == {"cone"} else {"relayed"}  # two cones may meet by themselves


class Run:
    """A run's folder: what its peers say of themselves."""

    def __init__(self, folder: Path) -> None:
        from sklearn.datasets import load_digits

        self.folder, self.config = folder, folder / "run.toml"
        self.config.write_text(RUN)
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        self.x = (digits.data[order] / 16).astype(np.float32)
        self.y = digits.target[order].astype(np.int64)
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def make(self, name: str, place: int = 0) -> StateFolder:
        state = StateFolder(self.folder / name)
        state.create(name)
        own = self.folder / f"{name} data"
        own.mkdir()
        rows = slice(TEST + place * OWN, TEST + (place + 1) * OWN)
        np.savez(own / "train.npz", x=self.x[rows], y=self.y[rows])
        np.savez(own / "test.npz", x=self.x[:TEST], y=self.y[:TEST])
        return state

    def start(self, lab: Lab, name: str, place: int, space: Space, ticket: Ticket) -> None:
        self.make(name, place)
        self.processes[name] = lab.python(
            space, SHOAL, "peer", "run", "--state", str(self.folder / name), "--config", str(self.config),
            "--data", str(self.folder / f"{name} data"), "--seat", str(place), "--join", str(ticket),
            "--listen", "0.0.0.0:4433", "--period", "0.5", "--json",
        )  # fmt: skip

    def status(self, name: str) -> dict[str, Any]:
        return StateFolder(self.folder / name).read("status")

    def path(self, one: str, other: str) -> str | None:
        members = self.status(one).get("members", [])
        return next((m["path"] for m in members if m["name"] == other), None)

    def accuracy(self, name: str) -> float:
        return float(self.status(name)["metrics"].get("accuracy", 0.0))

    def tick(self, name: str) -> int:
        return int(self.status(name).get("tick", -1))

    def wrong_paths(self) -> dict[tuple[str, str], str | None]:
        found = {pair: self.path(*pair) for pair in itertools.permutations(KINDS, 2)}
        return {pair: path for pair, path in found.items() if path not in paths_of(*pair)}

    def until(self, wrong: Callable[[], Any], seconds: float) -> None:
        """Wait until nothing is wrong any more."""
        end = time.monotonic() + seconds
        while said := wrong():
            assert time.monotonic() < end, (said, [self.status(name) for name in self.processes])
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended: {self.status(name)}"
            time.sleep(0.1)


def test_peers_behind_nats_train_together_and_one_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(tmp_path)
    digest = run_digest(plan_of(str(run.config)))
    with Lab() as lab:
        outside = lab.public()
        relay = run.make("relay")
        helper = lab.python(
            outside, SHOAL, "relay", "--state", str(relay.path), "--config", str(run.config),
            "--listen", "0.0.0.0:4433",
        )  # fmt: skip
        ticket = Ticket(relay.identity().id, (f"iroh://{outside.address}:4433",), digest)
        spaces = {
            name: lab.public() if kind is None else lab.host(lab.lan(kind)) for name, kind in KINDS.items()
        }
        for place, (name, space) in enumerate(spaces.items()):
            run.start(lab, name, place, space, ticket)

        # They find each other, each pair by the best path that there is, and learn.
        run.until(run.wrong_paths, 60)
        run.until(lambda: [name for name in KINDS if run.accuracy(name) < 0.9], 30)
        for name in KINDS:
            first = json.loads((tmp_path / name / "rows.jsonl").read_text().splitlines()[0])
            assert first["tick"] < 10 and first["accuracy"] < run.accuracy(name) - 0.1
        said = subprocess.run(
            [SHOAL, "peer", "status", "--state", str(tmp_path / "symmetric 1"), "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        told = json.loads(said.stdout)
        assert told["state"] == "running" and told["seat"] == 3 and len(told["members"]) == 6
        remote = {m["name"]: m["address"] for m in told["members"] if m["path"] == "relayed"}
        assert remote == dict.fromkeys(("cone 1", "cone 2", "symmetric 2"), f"relay://{ticket.peer}")
        assert all(reason.split(maxsplit=1)[1] in {"late", "ahead"} for reason in told["refusals"]), told

        # One of them comes to another network, and goes on.
        before = {name: run.tick(name) for name in KINDS}
        router = lab.lan("cone")
        lab.move(spaces["cone 2"], router)
        began = time.monotonic()
        run.until(lambda: run.tick("cone 2") < max(map(run.tick, KINDS)) - 2 or run.wrong_paths(), 30)
        run.until(lambda: min(map(run.tick, KINDS)) < max(before.values()) + 20, 30)
        print(f"whole again {time.monotonic() - began:.1f} s after the move")
        seen = f"iroh://{router.address}:4433"
        run.until(lambda: seen not in run.status("cone 2")["addresses"], 20)
        run.until(run.wrong_paths, 20)
        assert not any(run.status(name)["equivocations"] for name in KINDS)

        # Every one of them ends with a model.
        for process in run.processes.values():
            process.send_signal(signal.SIGTERM)
        last = {name: json.loads(process.communicate()[0]) for name, process in run.processes.items()}
        helper.send_signal(signal.SIGTERM)
        assert helper.wait(10) == 0
    for name in KINDS:
        assert last[name]["state"] == "stopped" and last[name]["metrics"]["accuracy"] > 0.9
        out = tmp_path / f"{name}.safetensors"
        export(out, run.config, tmp_path / f"{name} data", tmp_path / name)
        model = load_model(out)
        right = model.predict(run.x[:TEST]) == run.y[:TEST]
        assert np.asarray(right).mean() > 0.9
