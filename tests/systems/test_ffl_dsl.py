from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core import BadInput, Place, tree
from shoal.experiment import plan_of
from shoal.methods.schemes.ffl_dsl import FFL
from shoal.network.dsl import (
    COMBINE,
    INFER,
    INIT,
    TEST,
    Broadcast,
    Feedback,
    Graph,
    Parallel,
    Reduce,
    Wrapper,
    parse,
    read,
    train,
)
from shoal.runtimes.blocks import run_blocks
from shoal.runtimes.energy import counters, joules
from shoal.runtimes.local import Local
from shoal.runtimes.session import Session

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid(size=40)",
    "model": {"name": "mlp", "hidden": [8]},
}
LOCAL = "train(epochs=2, batch=8, lr=0.2)"
MASTER = f"init; feedback(3)[parallel(4)[{LOCAL}; test]; reduce(fedavg); broadcast]"
PEERS = f"feedback(3)[parallel(4)[{LOCAL}; test; broadcast; reduce(mean)]]"
TREE = "feedback(3)[parallel(2)[parallel(3)[infer(frames=5)]; combine]; combine]"


def plan(scheme: str, **more: Any) -> Any:
    settings = {"task": TASK, "seed": 5, "every": 1, **more}
    return plan_of(parse(scheme).compile(**settings))


def go(scheme: str, **more: Any) -> Any:
    return Local().run(plan(scheme, **more))


def fedavg(**more: Any) -> Any:
    method = {"epochs": 2, "batch": 8, "lr": 0.2}
    settings = {"task": TASK, "seed": 5, "peers": 4, "rounds": 3, "network": {"clock": "rounds"}, **more}
    return Local().run(plan_of("fedavg", method=method, **settings))


def test_master_worker_is_fedavg_bit_for_bit() -> None:
    compiled, written = go(MASTER), fedavg()
    assert torch.equal(compiled.output, written.output)
    assert compiled.bytes_sent == written.bytes_sent
    uneven = {**TASK, "partition": {"name": "iid", "skew_size": 0.7}}
    assert torch.equal(go(MASTER, task=uneven).output, fedavg(task=uneven).output)


@pytest.mark.parametrize("policy", ["fedavg", "mean"])
def test_peer_to_peer_on_the_complete_graph_is_fedavg(policy: str) -> None:
    report = go(PEERS.replace("mean", policy))
    torch.testing.assert_close(report.output, fedavg().output, rtol=0, atol=1e-5)


def test_peer_to_peer_fedavg_weighs_by_examples() -> None:
    uneven = {**TASK, "partition": {"name": "iid", "skew_size": 0.7}}
    target = fedavg(task=uneven).output
    weighed, equal = (go(PEERS.replace("mean", p), task=uneven).output for p in ("fedavg", "mean"))
    torch.testing.assert_close(weighed, target, rtol=0, atol=1e-5)
    assert float((equal - target).abs().max()) > 1e-3


def test_peer_to_peer_on_any_graph_is_dsgd() -> None:
    """One full-batch step a round: D-SGD (adapt then combine) on the same ring."""
    scheme = 'feedback(4)[parallel(5)[train(epochs=1, batch="all", lr=0.2); broadcast; reduce(mean)]]'
    task = {**TASK, "batch": 0}
    ours = go(scheme, task=task, network={"graph": "ring"})
    theirs = Local().run(
        plan_of("dsgd", task=task, seed=5, peers=5, rounds=4, network={"graph": "ring"},
                method={"lr": 0.2, "local_steps": 1})
    )  # fmt: skip
    torch.testing.assert_close(ours.output, theirs.output, rtol=0, atol=1e-6)


def test_bytes_of_a_round() -> None:
    for workers in (2, 3, 5):
        model = 4 * go(MASTER.replace("(4)", f"({workers})")).output.shape[1]
        assert go(MASTER.replace("(4)", f"({workers})")).bytes_sent == 3 * 2 * workers * model
        assert go(PEERS.replace("(4)", f"({workers})")).bytes_sent == 3 * workers * (workers - 1) * model
    told = go(TREE)
    # Six leaves send 5 classes each, two heads the 15 that they heard.
    assert told.final["messages"] == 3 * 8 and told.bytes_sent == 3 * 4 * (6 * 5 + 2 * 15)
    src, dst, _ = told.links
    assert set(zip(src.tolist(), dst.tolist(), strict=True)) == {
        (1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2),
    }  # fmt: skip


def results(made: Any) -> Any:
    session = Session.open(made)
    session.finish()
    return session.state.results


@pytest.mark.parametrize(
    "scheme",
    [
        TREE,
        "feedback(3)[parallel(4)[infer(frames=5)]; combine]",
        "feedback(3)[parallel(2)[parallel(2)[parallel(2)[infer(frames=5)]; combine]; combine]; combine]",
    ],
)
def test_the_control_room_holds_what_central_inference_gives(scheme: str) -> None:
    made = plan(scheme, task={**TASK, "pretrained": 10}, dtype="float64")
    held = results(made)
    work: Any = made.task.open(Place.whole(made.peers, 5, torch.float64))
    index, _ = work.batch(2, 1, 5)
    inputs, targets = work.fetch(index[:, 0], 2, 0)
    leaves = held.shape[1]
    central = work.model.logits(work.init(), inputs).argmax(-1)[-leaves:]
    assert torch.equal(held[0], central.to(held.dtype))
    assert float((central == targets[-leaves:]).double().mean()) > 0.6
    # The others know their own part only.
    assert (held >= 0).all(2).sum(1).tolist()[-leaves:] == [1] * leaves


def test_a_leaf_that_is_away_is_missed_alone() -> None:
    clock = {"name": "churn", "schedule": [[1, "crash", [4]]]}
    held = results(plan(TREE, network={"clock": clock}))
    assert (held[0] >= 0).all(1).tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("scheme", [MASTER, PEERS, TREE])
def test_schemes_run_in_blocks(scheme: str) -> None:
    made = plan(scheme, dtype="float64")
    session = Session.open(made)
    session.finish()
    whole, parts = tree.leaves(session.saved()), run_blocks(made, 3)
    for name in ("method.x", "method.server", "method.results"):
        assert torch.allclose(whole[name], parts[name], rtol=0, atol=1e-9), name
    assert torch.equal(whole["net.meter/bytes"], parts["net.meter/bytes"])


def test_asynchronous_feedback_has_a_poisson_clock() -> None:
    scheme = PEERS.replace("feedback(3)", "feedback(3, asynchronous=true)")
    table = parse(scheme).compile(task=TASK)
    assert table["network"]["clock"]["name"] == "poisson-peer" and table["rounds"] == 3 * 4
    report = go(scheme)
    assert report.bytes_sent == 12 * 2 * 4 * report.output.shape[1]  # both ends of one edge a tick


def test_a_rule_as_a_policy() -> None:
    """The median of three equal workers and one that starts elsewhere is that of the three."""
    for scheme in (MASTER.replace("fedavg", "trimmed-mean(f=1)"), PEERS.replace("mean", "median")):
        report = go(scheme, network={"graph": "complete", "attack": "noise", "hostile": (1,)})
        honest = torch.tensor([0, 2, 3])
        assert float(report.output[honest].abs().max()) < 10
    assert str(parse("reduce(trimmed-mean(f=1))")) == "reduce(trimmed-mean(f=1))"


def test_text_and_blocks_are_the_same() -> None:
    worker = train(epochs=2, batch=8, lr=0.2)
    graph = Graph(
        INIT, Feedback(Parallel(worker, TEST, workers=4), Reduce("fedavg"), Broadcast(), rounds=3)
    )
    assert str(graph) == MASTER and str(parse(MASTER)) == MASTER
    leaves = Parallel(Wrapper("infer", frames=5), workers=3)
    assert str(Graph(Feedback(Parallel(leaves, COMBINE, workers=2), COMBINE, rounds=3))) == TREE
    spread = "feedback(3)[  # rounds\n  parallel( 4 ) [train(epochs = 2, batch=8, lr=0.2); test];\n"
    assert str(parse(spread + "  reduce(fedavg);\n  broadcast\n]\n")) == MASTER.removeprefix("init; ")
    assert parse("parallel(3)[infer]; combine").program().tree == Graph(
        Parallel(INFER, workers=3), COMBINE
    ).program().tree  # fmt: skip


def test_a_file_of_text(tmp_path: Path) -> None:
    path = tmp_path / "scheme.dsl"
    path.write_text(MASTER)
    assert str(read(path)) == MASTER
    with pytest.raises(BadInput, match="not readable"):
        read(tmp_path / "none.dsl")


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("reduce(fedavg); broadcast", "after a parallel"),
        ("feedback(0)[parallel[train]]", "feedback = 0"),
        ("feedback(2.5)[parallel[train]]", "feedback = 2.5"),
        ("parallel[trian]", "unknown label; did you mean train"),
        ("feedback[parallel[train]]", "feedback"),
        ("parallel(0.5)[train]", "parallel = 0.5"),
        ("parallel(-1)[train]", "parallel = -1"),
        ("parallel[train]; broadcast", "after a reduce"),
        ("parallel[train]; reduce(fedavg)", "followed by a broadcast"),
        ("parallel[train; reduce(mean)]", "broadcast; reduce"),
        ("parallel[train; broadcast]", "every broadcast before a reduce"),
        ("parallel[]", "with work"),
        ("", "at least one block"),
        ("parallel(2)[train]; reduce(mean); broadcast; parallel(3)[train]", "one number of workers"),
        ("parallel[infer]; combine", "with its number of workers"),
        ("parallel(2)[train]; combine", "in a tree"),
        ("parallel(2)[infer]", "train, test or broadcast"),
        ("feedback(2)[feedback(3)[parallel[train]]]", "alone, around all"),
        ("train", "within a parallel"),
        ("train[test]", "behind parallel and feedback"),
        ("parallel", "behind parallel and feedback"),
        ("parallel[train", "label, label"),
        ("parallel[train(5)]", "name=value"),
        ("parallel[train(lr=-1)]", r"scheme.lr = -1"),
        ("parallel[train(speed=2)]", "speed"),
        ("parallel[train]; reduce(kurm); broadcast", "did you mean krum"),
        ("parallel(2)[infer(frames=0)]; combine", "infer.frames = 0"),
        ("parallel(2)[infer(size=3)]; combine", "infer has: frames"),
        ("feedback(2, 3)[parallel[train]]", "twice"),
        ("feedback(2, loops=3)[parallel[train]]", "loops"),
    ],
)
def test_bad_schemes(scheme: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        FFL(scheme=scheme)


def test_workers_need_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"a": "host1:80", "b": "host2:80"}))
    with pytest.raises(BadInput, match="endpoints = 2: one for each of the 4 workers"):
        parse(MASTER).compile(endpoints=path)
    assert parse(MASTER.replace("(4)", "")).compile(endpoints=path)["peers"] == 2
    path.write_text('{"a": 3}')
    with pytest.raises(BadInput, match="JSON"):
        parse(MASTER).compile(endpoints=path)


def test_other_numbers_of_peers_are_refused() -> None:
    with pytest.raises(BadInput, match="peers = 5: 4: as many as the scheme has workers"):
        go(MASTER, peers=5)


def test_energy_counters(tmp_path: Path) -> None:
    assert counters(tmp_path) == {} and joules({}, {}) is None
    for name, now in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:0", 1), ("intel-rapl:1", 9_999_990)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{now}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9999999\n")
    before = counters(tmp_path)
    assert before.keys() == {"intel-rapl:0", "intel-rapl:1"}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("999990")  # started again
    assert joules(before, counters(tmp_path)) == pytest.approx(3.0)
