"""One configuration and one seed, three placements: the same parameters, bytes and figures.

In an ordinary run every registered method runs between real processes in float64, a few of them also in
float32 and on a cluster. ``SHOAL_ALL=1 pytest tests/runtimes/test_placement.py`` runs all of them in
every way (about three minutes more).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shoal.conformance import TRIAL
from shoal.core import BadInput, RunFailed, methods, tree
from shoal.experiment import plan_of
from shoal.runtimes.local import Local
from shoal.runtimes.p2p.nursery import Nursery
from shoal.runtimes.p2p.runtime import PeerToPeer

EVERY = bool(os.environ.get("SHOAL_ALL"))
ALL = sorted(methods.classes())
SILENT = {"exp3", "local"}
FLOAT32 = ALL if EVERY else ["dsgd", "fedavg", "gradient-tracking", "just-one-byte", "modest"]
CLUSTER = ALL if EVERY else ["dsgd", "fedavg", "just-one-byte", "vc-gossip"]
CLOSE = {"float64": 1e-10, "float32": 1e-4}

pytest.importorskip("cryptography", reason="pip install 'shoal[p2p]'")


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as made:
        yield made


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shoal[cluster]'")
    from shoal.runtimes.cluster.connect import connected

    with connected("", 2) as module:
        yield module


def trial(slug, dtype="float64", **changes):
    """A few ticks of a method as the conformance suite runs it, with nobody who sees all messages."""
    method = methods.find(slug)
    settings = {**TRIAL, "rounds": 3, **method.trial, **changes, "seed": 7, "dtype": dtype, "every": 2}
    plan = plan_of(slug, **settings)
    if plan.network.attack is not None and plan.network.attack.informed:
        plan = plan.replace(network=plan.network.replace(attack="sign-flip"))
    return plan


def same(one, two, close):
    """Parameters up to ``close``, bytes by edge exactly, every figure of every row."""
    a, b = tree.leaves(one.output), tree.leaves(two.output)
    assert a.keys() == b.keys()
    for name, left in a.items():
        if isinstance(left, torch.Tensor):
            assert left.dtype == b[name].dtype and left.shape == b[name].shape, name
            assert torch.allclose(left.double(), b[name].double(), rtol=0, atol=close, equal_nan=True), name
        else:
            assert left == b[name], name
    assert all(torch.equal(x, y) for x, y in zip(one.links, two.links, strict=True))
    assert one.bytes_sent == two.bytes_sent
    assert len(one.rows) == len(two.rows)
    for x, y in zip(one.rows, two.rows, strict=True):
        assert x.keys() == y.keys() and x["tick"] == y["tick"] and x["bytes"] == y["bytes"]
        for name in x.keys() - {"wall_s"}:
            near = y[name] and pytest.approx(y[name], rel=10 * close, abs=10 * close, nan_ok=True)
            assert x[name] == near, name
    unlike = {"transport_bytes"}
    assert one.final.keys() - unlike == two.final.keys() - unlike


@pytest.mark.parametrize("slug", ALL)
def test_between_real_processes_as_in_one(slug, nursery):
    plan = trial(slug)
    report = PeerToPeer(timeout=60).within(nursery, plan)
    assert (report.bytes_sent > 0) == (slug not in SILENT)
    same(Local().run(plan), report, CLOSE["float64"])


@pytest.mark.parametrize("slug", FLOAT32)
def test_between_real_processes_in_float32(slug, nursery):
    plan = trial(slug, "float32")
    same(Local().run(plan), PeerToPeer(timeout=60).within(nursery, plan), CLOSE["float32"])


@pytest.mark.parametrize("slug", CLUSTER)
def test_on_a_cluster_as_in_one_process(slug, ray):
    from shoal.runtimes.cluster.runtime import Cluster

    for dtype in CLOSE if EVERY else ["float64"]:
        plan = trial(slug, dtype)
        same(Local().run(plan), Cluster(blocks=2).run(plan), CLOSE[dtype])


def test_peers_that_need_not_wait_for_each_other_do_not_lose_what_they_send(nursery):
    # Pairs meet at random: some peers are dozens of ticks ahead of others.
    plan = trial("dadao", rounds=60, peers=8)
    same(Local().run(plan), PeerToPeer(timeout=60).within(nursery, plan), CLOSE["float64"])


def test_over_quic(nursery):
    pytest.importorskip("iroh")
    plan = trial("dsgd")
    same(
        Local().run(plan), PeerToPeer(transport="iroh", timeout=60).within(nursery, plan), CLOSE["float64"]
    )


MINE = """
from dataclasses import dataclass
from shoal.core import Method

@dataclass(frozen=True)
class State:
    x: object

@dataclass(frozen=True)
class Pull(Method):
    by: float = 0.5
    fall: int = -1

    def init(self, ctx):
        return State(ctx.task.init())

    def step(self, s, tick, ctx):
        if self.fall in ctx.peers.tolist() and len(ctx.peers) == 1:
            raise ValueError("no more")
        return State(ctx.net.mix(s.x + self.by * ctx.peers[:, None], tick))
"""


def own(folder, **fields):
    (folder / "mine.py").write_text(MINE)
    return plan_of(
        f"{folder / 'mine.py'}:Pull", **{**TRIAL, "peers": 3, "rounds": 6}, seed=7, method=fields
    )


def test_a_users_own_method_runs_there_and_its_mistakes_are_one_line(nursery, tmp_path):
    plan = own(tmp_path, by=0.25)
    same(Local().run(plan), PeerToPeer(timeout=60).within(nursery, plan), CLOSE["float32"])
    with pytest.raises(RunFailed, match=r"^peer 1: ValueError: no more \(line 19 of mine.py\)$"):
        PeerToPeer().within(nursery, own(tmp_path, fall=1))


def test_what_one_placement_saved_another_goes_on_from(nursery, tmp_path):
    network = {"graph": "ring", "codec": "topk(fraction=0.3)", "clock": "churn(crash=0.1,rejoin=0.5)"}
    short, long = (trial("gradient-tracking", rounds=n, network=network) for n in (4, 7))
    far = PeerToPeer(timeout=60, checkpoint_every=2)
    whole = Local().run(long)
    far.within(nursery, short, checkpoint=tmp_path / "p2p.safetensors")
    resumed = Local().run(long, checkpoint=tmp_path / "p2p.safetensors", resume=True)
    same(whole, resumed, CLOSE["float64"])
    Local(checkpoint_every=2).run(short, checkpoint=tmp_path / "local.safetensors")
    resumed = far.within(nursery, long, checkpoint=tmp_path / "local.safetensors", resume=True)
    same(whole, resumed, CLOSE["float64"])


def test_what_cannot_run_between_strangers_is_refused_at_once():
    began = time.monotonic()
    spied = plan_of("dsgd", **{**TRIAL, "network": {"graph": "ring", "attack": "ipm", "hostile": 0.2}})
    with pytest.raises(BadInput, match="only where all peers are simulated"):
        PeerToPeer().run(spied)
    with pytest.raises(BadInput, match="at most 64 processes"):
        PeerToPeer().run(plan_of("dsgd", **{**TRIAL, "peers": 65}))
    held = plan_of("dsgd", **TRIAL).task.replace(
        model={"name": "module", "path": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    )
    with pytest.raises(BadInput, match=r"task.model.path = .* cannot be handed an object"):
        PeerToPeer().run(plan_of("dsgd", **{**TRIAL, "task": held}))
    assert time.monotonic() - began < 20


# -- the command line ----------------------------------------------------------------------------------

SMALL = ["--seed", "7", "--peers", "8", "--set", "task.limit=300", "--set", "task.model=mlp(hidden=[16])"]


def command(*args):
    return [sys.executable, "-m", "shoal.cli", "run", "dsgd", *args]


@pytest.mark.parametrize("runtime", ["cluster", "p2p"])
def test_the_user_changes_one_word(runtime, tmp_path):
    pytest.importorskip("ray" if runtime == "cluster" else "cryptography")
    told, sent = [], []
    for where in ("local", runtime):
        args = [*SMALL, "--rounds", "8", "--json", "--runtime", where, "--out", str(tmp_path / where)]
        done = subprocess.run(
            command(*args), capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
        sent.append((tmp_path / where / "links.parquet").read_bytes())
    assert told[0]["metrics"] == pytest.approx(told[1]["metrics"], rel=1e-4)
    assert told[0]["bytes_sent"] == told[1]["bytes_sent"] > 0 and sent[0] == sent[1]


def descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("end", ["a peer is killed", "Ctrl-C", "the program is killed"])
def test_nothing_is_left_behind_however_a_run_ends(end, tmp_path):
    out = tmp_path / "r"
    args = [*SMALL, "--peers", "3", "--rounds", "1000000", "--runtime", "p2p", "--out", str(out), "--json"]
    run = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        until(lambda: (out / "checkpoint.safetensors").exists() or run.poll() is not None)
        nursery, *peers = descendants(run.pid)
        assert len(peers) == 3
        if end == "a peer is killed":
            os.kill(peers[1], signal.SIGKILL)
            said = run.communicate(timeout=30)
            assert run.returncode == 1
            assert said == ("", "shoal: the process of peer 1 ended (killed by SIGKILL)\n")
        elif end == "Ctrl-C":
            run.send_signal(signal.SIGINT)
            said = run.communicate(timeout=30)
            assert run.returncode == 1 and not said[1]
            report = json.loads((out / "report.json").read_text())
            assert report["status"] == "stopped" and json.loads(said[0])["metrics"]["accuracy"] > 0
            assert np.isfinite(json.loads(said[0])["metrics"]["consensus"])
        else:
            run.kill()
            run.communicate(timeout=30)
        until(lambda: all(gone(pid) for pid in (nursery, *peers)), 10)
    finally:
        run.kill()
        run.wait()
