from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.core import BadInput, Place, RunFailed, tree
from shoal.experiment import plan_of, run
from shoal.methods.gossip.modest import MoDeST
from shoal.network.population import HashSampler
from shoal.runtimes.blocks import run_blocks
from shoal.runtimes.local import Local
from shoal.runtimes.session import Session

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "digits",
    "partition": "iid",
    "model": {"name": "mlp", "hidden": [8]},
    "batch": 8,
    "limit": 240,
}
SMALL: dict[str, Any] = {"s": 4, "a": 1, "sf": 1.0, "local_steps": 2}


def plan(rounds: int = 6, peers: int = 12, clock: Any = "rounds", **fields: Any) -> Any:
    links = fields.pop("links", {})
    network = {"graph": fields.pop("graph", "complete"), "clock": clock, "links": links}
    return plan_of(
        "modest", task=TASK, peers=peers, rounds=rounds, every=1, seed=3, dtype="float64", network=network,
        method={**SMALL, **fields},
    )  # fmt: skip


def go(rounds: int = 6, **fields: Any) -> Any:
    return Local().run(plan(rounds, **fields))


def states(rounds: int = 6, **fields: Any) -> list[Any]:
    """The state after every tick."""
    made = plan(rounds, **fields)
    session = Session.open(made)
    found = []
    for tick, _ in made.network.ticks(made.peers, made.seed, rounds, 0, None):
        session.state = made.method.step(session.state, tick, session.context)
        found.append(session.state)
    return found


def test_without_failures_it_is_fedavg_on_the_hash_samples() -> None:
    work: Any = plan().task.open(Place.whole(12, 3, torch.float64))
    x, sampler = work.init()[:1], HashSampler(3, 12)
    for k in range(6):
        chosen = sampler.order(k)[:4]
        up = work.sgd(x.expand(12, -1), k, 2, MoDeST().lr)
        x = up[chosen.sort().values].mean(0, keepdim=True)
    last = states()[-1]
    assert set(last.due.nonzero()[:, 0].tolist()) == set(sampler.order(6)[:4].tolist())
    torch.testing.assert_close(last.x[last.due], x.expand(4, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("a", [1, 2])
def test_messages_of_a_round(a: int) -> None:
    """s a models up and s a down, less those to oneself; a view of 8 n bytes with each."""
    report, sampler, n = go(a=a), HashSampler(3, 12), 12
    pairs = 0
    for k in range(6):
        heads = set(sampler.order(k + 1)[:a].tolist())
        pairs += sum(len(set(sampler.order(r)[:4].tolist()) - {h}) for h in heads for r in (k, k + 1))
    model = 8 * report.output.shape[1]
    # [round, view]: a small list head, a number of one byte, and the bytes with their length.
    assert report.bytes_sent == pairs * (model + 8 * n + 4)
    assert report.final["messages"] == 2 * pairs


def test_equal_views_give_equal_samples() -> None:
    view = states()[-1].view
    own = torch.eye(12, dtype=torch.bool)
    assert bool(view.candidates(50, own).all())
    drawn = HashSampler(3, 12).sample(6, view.candidates(50, own), 4)
    assert bool((drawn == drawn[:1]).all())


def test_an_aggregator_takes_the_first_of_its_share() -> None:
    """sf = 0.5: two of the four models, whichever two arrive first."""
    work: Any = plan().task.open(Place.whole(12, 3, torch.float64))
    up = work.sgd(work.init(), 0, 2, MoDeST().lr)
    four = HashSampler(3, 12).order(0)[:4].tolist()
    after = states(1, sf=0.5)[0]
    got = after.x[after.due][0]
    means = [up[[i, j]].mean(0) for i in four for j in four if i < j]
    assert min(float((got - mean).abs().max()) for mean in means) < 1e-12


def test_dead_peers_are_replaced_by_the_next_in_the_order() -> None:
    clock = {"name": "churn", "schedule": [[2, "crash", 0.5]]}
    made = plan(8, clock=clock)
    ticks = [t for t, _ in made.network.ticks(12, 3, 8, 0, None)]
    for state, tick in list(zip(states(8, clock=clock), ticks, strict=True))[3:]:
        live = [i for i in HashSampler(3, 12).order(tick.index + 1).tolist() if bool(tick.active[i])][:4]
        assert set(state.due.nonzero()[:, 0].tolist()) == set(live)


def test_it_goes_on_when_all_who_hold_the_round_crash() -> None:
    sampler = HashSampler(3, 12)
    holders = {*sampler.order(3)[:4].tolist(), *sampler.order(3)[:1].tolist()}
    clock = {"name": "churn", "schedule": [[3, "crash", sorted(holders)]]}
    found = states(8, clock=clock)
    lost, after = found[3], found[-1]
    # Nobody trained at tick 3; an aggregator goes on from what it had last, some rounds back.
    assert bool(lost.due.any()) and int(lost.round[lost.due].max()) <= 2
    assert int(after.round[after.due].max()) >= int(lost.round[lost.due].max()) + 4
    assert not (set(after.due.nonzero()[:, 0].tolist()) & holders)


def test_who_joins_is_drawn_once_it_is_known() -> None:
    clock = {"name": "churn", "initial": 0.75, "schedule": [[2, "join", 1.0]]}
    found = states(30, clock=clock)
    assert found[1].view.counter[:9, 9:].max() == 0
    assert bool((found[-1].view.counter[:, 9:] == 1).any(0).all())
    drawn = torch.stack([s.due for s in found])
    assert not bool(drawn[:2, 9:].any()) and bool(drawn[:, 9:].any(0).all())


def test_who_was_long_not_drawn_says_that_it_is_there() -> None:
    found = states(30, peers=16, silence=4)
    counters = torch.stack([s.view.counter.diagonal() for s in found])
    assert bool((counters % 2 == 1).all()) and int(counters[-1].max()) > 1
    assert int(torch.stack([s.due for s in found]).sum(1).min()) >= 1


@pytest.mark.parametrize(
    "more",
    [
        {"clock": {"name": "churn", "initial": 0.7, "join": 0.1, "crash": 0.1, "rejoin": 0.5}},
        {"clock": "participation(fraction=0.8)", "a": 2, "sf": 0.6},
        {"graph": "components(parts=2)", "silence": 3},
        {"graph": "complete", "silence": 2, "a": 2},
    ],
)
def test_blocks_see_the_same_though_their_views_differ(more: dict[str, Any]) -> None:
    made = plan(10, **more)
    session = Session.open(made)
    session.finish()
    whole = tree.leaves(session.saved())
    parts = run_blocks(made, 12)
    for name in ("method.x", "method.round", "method.due", "method.view.last", "method.view.counter"):
        assert torch.allclose(whole[name].double(), parts[name].double(), rtol=0, atol=1e-9), name


def test_lost_messages_do_not_stop_it() -> None:
    found = states(25, links={"loss": 0.3}, sf=0.5)
    assert int(found[-1].round.max()) >= 10
    assert bool(torch.isfinite(found[-1].x).all())


def test_the_report_tells_the_sampled_accuracy() -> None:
    report = go(4)
    told = report.peers["sampled_accuracy"]
    assert int(torch.isfinite(told).sum()) == 4
    assert report.metrics["sampled_accuracy"] == pytest.approx(float(told.nanmean()))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"s": 0}, "s"),
        ({"s": 4, "a": 5}, "a"),
        ({"a": 0}, "a"),
        ({"sf": 0.0}, "sf"),
        ({"sf": 1.1}, "sf"),
        ({"silence": 0}, "silence"),
    ],
)
def test_bad_fields(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"{named} = "):
        MoDeST(**fields)


def test_more_participants_than_peers() -> None:
    with pytest.raises(BadInput, match="at most the number of peers, 12"):
        go(1, s=13)


def test_too_few_live_peers_are_a_stall() -> None:
    clock = {"name": "churn", "schedule": [[2, "crash", list(range(9))]]}
    with pytest.raises(RunFailed, match=r"stalled in round 2: 3 peers are live, fewer than the .* = 4"):
        run("modest", task=TASK, peers=12, rounds=5, network={"graph": "complete", "clock": clock}, **SMALL)
