"""The cluster runtime: the port between processes, equality with local, and blocks that are killed."""

from __future__ import annotations

import multiprocessing
import os
import traceback

import pytest
import torch

from shoal.core import BadInput, RunFailed, methods, tree
from shoal.experiment import plan_of
from shoal.runtimes.cluster.connect import connected
from shoal.runtimes.cluster.group import Group
from shoal.runtimes.cluster.port import HEAD, SIZE, DistPort, Lost, meeting_point
from shoal.runtimes.cluster.runtime import Cluster, shares
from shoal.runtimes.local import Local
from shoal.runtimes.parts import whole
from shoal.runtimes.session import Session

TASK = {
    "name": "supervised",
    "data": "digits",
    "model": {"name": "mlp", "hidden": [8]},
    "limit": 300,
    "batch": 8,
}


def plan(method="dsgd", **changes):
    network = {"graph": "ring", **changes.pop("network", {})}
    settings = {"task": TASK, "peers": 6, "rounds": 30, "every": 5, "seed": 7, "dtype": "float64"}
    return plan_of(method, network=network, **{**settings, **changes})


def trial(slug):
    """A few ticks of a method as the conformance suite runs it."""
    method = methods.find(slug)
    small = {"task": {**TASK, "partition": "iid"}, "network": {"graph": "ring"}, "peers": 6, "rounds": 3}
    settings = {**small, **method.trial, "seed": 7, "dtype": "float64", "every": 100}
    return plan_of(slug, **settings)


# -- the port, between plain processes ---------------------------------------------------------------


def _worker(here, blocks, meet, orders, answers):
    torch.set_num_threads(1)
    for meeting, (what, given) in enumerate(iter(orders.get, None)):
        try:
            if here == 0:
                store = meeting_point("127.0.0.1")
                for _ in range(1, blocks):
                    meet.put((meeting, store.port))
            else:
                number, port = meet.get()
                assert number == meeting
                store = meeting_point("127.0.0.1", port)
            sizes = given[1] if what == "run" else [1] * blocks
            with DistPort(here, sizes, store, timeout=30.0) as port:
                answers.put((here, ACTS[what](port, given)))
        except Lost as error:
            answers.put((here, error))
        except Exception:  # told to the test
            answers.put((here, traceback.format_exc()))


def _parcels(port, sizes):
    """Every size round the ring, in pieces; returns what was wrong."""
    others = sorted({(port.here - 1) % 3, (port.here + 1) % 3})
    for size in sizes:
        pieces = [bytes([port.here]), b"", bytearray(size // 2), memoryview(bytes(size - size // 2))]
        got = port.swap(dict.fromkeys(others, pieces), others)
        if [bytes(got[b]) for b in others] != [bytes([b]) + bytes(size) for b in others]:
            return f"{size} bytes"
    # Only who is named takes part.
    got = port.swap({1: [b"to one"]} if port.here == 0 else {}, [0] if port.here == 1 else [])
    return {b: bytes(v) for b, v in got.items()}


def _run(port, given):
    spec, _ = given
    session = Session.open(plan_of(**spec), port).finish()
    return tree.leaves(session.saved())


def _die(port, victim):
    for turn in range(1000):
        if port.here == victim and turn == 5:
            os._exit(9)
        others = [b for b in (port.here - 1, port.here + 1) if 0 <= b < 3]
        port.swap({b: [b"x"] for b in others}, others)
    return "nobody was missed"


ACTS = {"parcels": _parcels, "run": _run, "die": _die}


class Crowd:
    """Three processes that meet anew for every order."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.answers = context.Queue()
        self.orders = [context.Queue() for _ in range(3)]
        self.meet = [context.Queue() for _ in range(2)]
        self.processes = [
            context.Process(target=_worker, args=(i, 3, _Both(self.meet, i), q, self.answers), daemon=True)
            for i, q in enumerate(self.orders)
        ]
        for process in self.processes:
            process.start()

    def ask(self, what, given, answers=3):
        for queue in self.orders:
            queue.put((what, given))
        return dict(self.answers.get(timeout=120) for _ in range(answers))

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


class _Both:
    """Block 0 tells each of the others where to meet."""

    def __init__(self, queues, here):
        self.queues, self.here, self.turn = queues, here, 0

    def put(self, value):
        self.queues[self.turn % 2].put(value)
        self.turn += 1

    def get(self):
        return self.queues[self.here - 1].get(timeout=60)


@pytest.fixture(scope="module")
def crowd():
    made = Crowd()
    yield made
    made.close()


def test_parcels_of_all_sizes_arrive_whole_and_only_where_they_are_sent(crowd):
    edge = HEAD - SIZE - 1
    told = crowd.ask("parcels", [0, 1, edge - 1, edge, edge + 1, 100_000, 3_000_000])
    assert told == {0: {}, 1: {0: b"to one"}, 2: {}}


@pytest.mark.parametrize("slug", sorted(methods.classes()))
def test_every_method_over_torch_distributed_equals_local(slug, crowd):
    one = trial(slug)
    alone = Session.open(one).finish()
    spec = {
        "system": {"method": one.method.spec(), **{k: v for k, v in one.spec().items() if k != "method"}}
    }
    sizes = shares(one.peers, 3)
    told = crowd.ask("run", (spec, sizes))
    assert not any(isinstance(v, str | Lost) for v in told.values()), told
    joined = whole([told[i] for i in range(3)], sizes, type(alone.work))
    for name, value in tree.leaves(alone.saved()).items():
        if name.startswith("method") and isinstance(value, torch.Tensor):
            assert torch.allclose(value.double(), joined[name].double(), atol=1e-10, equal_nan=True), name
        elif name in {"net.meter/keys", "net.meter/bytes", "net.meter/totals"}:
            assert torch.equal(value, joined[name]), name


def test_a_partner_that_dies_ends_all_who_wait_for_it_or_for_each_other():
    crowd = Crowd()
    try:
        told = crowd.ask("die", 2, answers=2)
    finally:
        crowd.close()
    assert {k: type(v) for k, v in told.items()} == {0: Lost, 1: Lost}, told


# -- Ray ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:many"])
def test_a_cluster_that_is_not_there_is_one_line(address):
    pytest.importorskip("ray")
    with pytest.raises(BadInput, match="no Ray cluster there"), connected(address):
        pass


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shoal[cluster]'")
    with connected("", 4) as module:
        yield module


def kill(monkeypatch, victim, at, times=1):
    """The process of block ``victim`` is killed while it runs to tick ``at`` or later."""
    real, killed = Group.advance, []

    def advance(self, until, keep):
        hit = until >= at and len(killed) < times
        pid = self.ray.get(self.actors[victim].ready.remote()) if hit else 0
        asked = real(self, until, keep)
        if hit:
            killed.append(pid)
            os.kill(pid, 9)
        return asked

    monkeypatch.setattr(Group, "advance", advance)
    return killed


def same(one, two):
    assert torch.equal(one.output, two.output)
    assert all(torch.equal(a, b) for a, b in zip(one.links, two.links, strict=True))
    assert [{**r, "wall_s": 0} for r in one.rows] == [{**r, "wall_s": 0} for r in two.rows]


def test_a_killed_block_is_restarted_and_the_result_is_that_of_local(ray, monkeypatch, tmp_path):
    one = plan(network={"codec": "topk(fraction=0.3)", "clock": "churn(crash=0.1,rejoin=0.5)"})
    killed = kill(monkeypatch, victim=0, at=12)
    seen = []
    report = Cluster(blocks=2).run(
        one, checkpoint=tmp_path / "c.safetensors", progress=lambda *told: seen.append(told)
    )
    same(Local().run(one), report)
    assert (
        len(killed) == 1 and "its process died" in report.notes[-1] and "from tick 10" in report.notes[-1]
    )
    assert seen[-1][:2] == (30, 30) and seen[-1][3] == report.bytes_sent
    # The checkpoint is the one that local would have written: local goes on from it.
    longer = one.replace(rounds=35)
    resumed = Local().run(longer, checkpoint=tmp_path / "c.safetensors", resume=True)
    assert torch.equal(resumed.output, Local().run(longer).output)


def test_peers_of_a_lost_block_are_gone_where_that_is_asked_for(ray, monkeypatch):
    kill(monkeypatch, victim=1, at=12)
    report = Cluster(blocks=3, on_loss="churn").run(plan())
    clock = {"name": "churn", "schedule": [[10, "leave", [2, 3]]]}
    same(Local().run(plan(network={"clock": ["rounds", clock]})), report)
    assert "peers 2 to 3" in report.notes[-1] and "gone from tick 10" in report.notes[-1]


def test_a_loss_fails_in_one_line_where_that_is_asked_for(ray, monkeypatch):
    kill(monkeypatch, victim=1, at=5)
    with pytest.raises(RunFailed, match=r"^block of peers 3 to 5 lost after tick .*on_loss = restart"):
        Cluster(blocks=2, on_loss="fail").run(plan())


def test_no_place_for_a_block_is_one_line(ray):
    with pytest.raises(RunFailed, match=r"no place for \d of 6 blocks"):
        Cluster(blocks=6, patience=8.0).run(plan())


def test_a_users_own_method_runs_there(ray, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from shoal.core import Method\n\n\n"
        "@dataclass(frozen=True)\nclass State:\n    x: object\n\n\n"
        "@dataclass(frozen=True)\nclass Only(Method):\n"
        "    def init(self, ctx):\n        return State(ctx.task.init())\n\n"
        "    def step(self, s, tick, ctx):\n"
        "        return State(ctx.net.mix(s.x + ctx.peers[:, None], tick))\n"
    )
    one = plan(f"{tmp_path / 'mine.py'}:Only", rounds=3)
    same(Local().run(one), Cluster(blocks=2).run(one))


def test_bad_settings_are_refused_before_anything_starts():
    with pytest.raises(BadInput, match="blocks"):
        Cluster(blocks=7).run(plan())
    with pytest.raises(BadInput, match="on_loss"):
        Cluster(on_loss="pray")
    with pytest.raises(BadInput, match="needs a task of kind"):
        Cluster().run(plan(task="population"))
