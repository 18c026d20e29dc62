"""The local runtime: clocks that resume, blocks in float32, divergence, rows and reports."""

from __future__ import annotations

import pytest
import torch

from shoal.core import BadInput, RunFailed, tree
from shoal.experiment import plan_of, run
from shoal.runtimes.blocks import run_blocks
from shoal.runtimes.local import Local
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
    settings = {"task": TASK, "peers": 6, "rounds": 6, "every": 2, "seed": 5, "dtype": "float64"}
    return plan_of(method, network=network, **{**settings, **changes})


CLOCKS = [
    "rounds",
    "participation(fraction=0.5)",
    "stragglers(slow=0.5,factor=4)",
    "churn(leave=0.1,crash=0.2,rejoin=0.5)",
    "poisson-peer",
    "poisson-edge",
    "poisson-pair",
    "one-peer",
    "participation(fraction=0.7)+stragglers(slow=0.3,factor=2)",
]


def same(one, two, tolerance=1e-9):
    """Two checkpoints agree: numbers that count exactly, floats to the tolerance."""
    one, two = ({k: v for k, v in x.items() if not k.startswith("run.")} for x in (one, two))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            gap = (value.double() - two[name].double()).abs()
            assert value.shape == two[name].shape, name
            assert not value.numel() or float(gap.max()) <= tolerance * value.is_floating_point(), name
        else:
            assert value == two[name], name


@pytest.mark.parametrize("clock", CLOCKS)
def test_every_clock_resumes_and_splits_into_blocks(clock, tmp_path):
    one = plan(network={"clock": clock, "codec": "topk(fraction=0.3)", "links": {"loss": 0.1}})
    whole = Session.open(one).finish()
    path = tmp_path / "c.safetensors"
    first = Session.open(one)
    for _ in first.ticks():
        if first.done == 3:
            break
    tree.save(first.saved(), path)
    second = Session.open(one)
    second.restore(tree.read(path))
    second.finish()
    assert torch.equal(whole.state.x, second.state.x)
    same(tree.leaves(whole.saved()), tree.leaves(second.saved()), 0)
    for trusted in (True, False):
        same(tree.leaves(whole.saved()), run_blocks(one, 3, trusted=trusted))


VARIANTS = [
    {"method": "fedavg", "network": {"codec": "topk(fraction=0.3)+int8", "links": {"loss": 0.2}}},
    {"method": "fedavg", "network": {"codec": "int8", "rule": "median", "links": {"corruption": 0.2}}},
    {"method": "single-merge", "network": {"codec": "sign", "links": {"loss": 0.1}}},
    {"network": {"codec": "topk(fraction=0.3)+checksum", "links": {"corruption": 0.3, "loss": 0.1}}},
    {"network": {"codec": "sign", "graph": "random-peer", "links": {"both_ways": False, "loss": 0.3}}},
    {
        "network": {
            "codec": "int8",
            "rule": "krum(f=1)",
            "attack": "alie",
            "hostile": (1,),
            "graph": "complete",
        }
    },
    {"network": {"attack": "sign-flip", "hostile": (1, 4), "rule": "median"}},
    {"network": {"attack": "ipm(knowledge='coalition')", "hostile": (1, 4), "graph": "complete"}},
    {"method": "modest", "network": {"graph": "complete", "links": {"loss": 0.3}}},
    {"network": {"norm": 5.0, "codec": "int8", "attack": "noise(sigma=9)", "hostile": (2,)}},
    {"method": "dsgd", "network": {"links": {"loss": 0.3, "partition": (1, 3, 2)}, "clock": "churn"}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: str(v["network"]))
@pytest.mark.parametrize("blocks", [2, 6])
def test_blocks_change_nothing_behind_any_wire(variant, blocks):
    one = plan(variant.get("method", "dsgd"), network=variant["network"])
    whole = tree.leaves(Session.open(one).finish().saved())
    same(whole, run_blocks(one, blocks))
    attack = one.network.attack
    if attack is None or not attack.informed:
        same(whole, run_blocks(one, blocks, trusted=False))
    else:
        with pytest.raises(BadInput, match="sees others' messages"):
            run_blocks(one, blocks, trusted=False)


def test_a_checkpoint_of_one_placement_goes_on_in_another(tmp_path):
    one = plan(network={"codec": "topk(fraction=0.3)", "links": {"loss": 0.1}})
    whole = Session.open(one).finish()
    first = Session.open(one)
    for _ in first.ticks():
        if first.done == 3:
            break
    tree.save(first.saved(), tmp_path / "half")
    half = tree.read(tmp_path / "half")
    same(tree.leaves(whole.saved()), run_blocks(one, 3, start=half))


def test_blocks_agree_in_float32_to_its_rounding():
    one = plan(dtype="float32")
    same(tree.leaves(Session.open(one).finish().saved()), run_blocks(one, 6), 1e-4)


def test_divergence_is_one_line_that_says_what_to_try():
    with pytest.raises(RunFailed, match=r"diverged.*smaller learning rate"):
        Local().run(plan_of("dsgd", task={**TASK, "model": "linear", "data": "sklearn(table='diabetes')"},
                            peers=4, rounds=60, every=1, method={"lr": 1e4}))  # fmt: skip


def test_rows_tell_mean_worst_decile_and_spread():
    report = run(plan())
    last = report.rows[-1]
    assert {
        "tick",
        "time",
        "bytes",
        "spent",
        "accuracy",
        "accuracy_p10",
        "accuracy_std",
        "consensus",
    } <= set(last)
    assert last["tick"] == 6 and [r["tick"] for r in report.rows] == [0, 2, 4, 6]
    assert abs(last["accuracy"] - float(report.peers["accuracy"].mean())) < 1e-12
    assert last["spent"] == 6 * 6 * 5
    src, _, size = report.links
    assert int(size.sum()) == report.bytes_sent and int(src.max()) < 6


def test_hostile_peers_do_not_count_in_the_figures():
    report = run(plan(network={"attack": "sign-flip", "hostile": (0, 1), "rule": "median"}))
    honest = report.peers["accuracy"][2:]
    assert abs(report.metrics["accuracy"] - float(honest.mean())) < 1e-12


def test_a_rule_without_enough_neighbours_is_said():
    report = run(plan(network={"rule": "krum(f=1)"}))
    assert any("too few messages" in note for note in report.notes)
    with pytest.raises(BadInput, match=r"network.rule.*needs at least"):
        run(plan(network={"rule": "krum(f=9)"}))


def test_a_task_of_the_wrong_kind_is_refused():
    with pytest.raises(BadInput, match="needs a task of kind"):
        run(plan(task="population"))


def test_noise_is_accounted_for():
    report = run(plan(network={"codec": "gaussian(clip=1,sigma=2)"}))
    assert 0 < report.final["epsilon"] < 100
