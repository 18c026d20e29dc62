"""MeritRank, its walks, its Sybil regions and its task."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from shoal.attack.sybil import Region
from shoal.conformance import CHECKS
from shoal.core import BadInput, Draws, MissingExtra, Place
from shoal.experiment import run
from shoal.methods.trust.meritrank import GossipedMeritRank
from shoal.tasks.reputation import Reputation, load_feedback
from shoal.trust.meritrank import MeritRank, max_flow
from shoal.trust.walks import DecayWalks, WalkGraph


def draws(*nodes: int, purpose: str = "walks", seed: int = 1) -> Draws:
    return Draws(seed, purpose, torch.tensor(nodes))


def graph(n: int, *edges: tuple[int, int, float]) -> WalkGraph:
    source, target, weight = (torch.tensor(v) for v in zip(*edges, strict=True))
    return WalkGraph.of(n, source, target, weight)


def karate() -> tuple[nx.DiGraph, WalkGraph]:
    known = nx.karate_club_graph().to_directed()
    return known, graph(34, *((a, b, float(w)) for a, b, w in known.edges(data="weight")))


@pytest.mark.parametrize("alpha", [0.15, 0.4])
def test_visits_are_personalised_pagerank(alpha: float) -> None:
    known, walked = karate()
    scorer = MeritRank(alpha=alpha, beta=0.0, walks=8000)
    walks = scorer.run(walked, torch.tensor([3]), draws(3))
    truth = nx.pagerank(known, alpha=1 - alpha, personalization={3: 1}, tol=1e-13, max_iter=1000)
    each = torch.zeros(8000, 34, dtype=torch.float64)
    path = walks.path[0, :, 1:]
    row, hop = (path >= 0).nonzero(as_tuple=True)
    each.index_put_((row, path[row, hop]), torch.ones(len(row), dtype=torch.float64), accumulate=True)
    error = each.std(0) / 8000**0.5
    exact = torch.tensor([(truth[j] - alpha * (j == 3)) / alpha for j in range(34)], dtype=torch.float64)
    assert torch.allclose(each.mean(0), scorer.raw(walks)[0])
    assert bool(((each.mean(0) - exact).abs() <= 4 * error + 1e-9).all())


def test_hits_and_bottleneck_count_what_a_loop_counts() -> None:
    _, walked = karate()
    walks = DecayWalks(walks=200).run(walked, torch.tensor([3, 20]), draws(3, 20))
    hits, before = torch.zeros(2, 34), torch.zeros(2, 34, 34)
    for b, root in enumerate((3, 20)):
        for path in walks.path[b].tolist():
            seen = list(dict.fromkeys(v for v in path[1:] if v >= 0))
            hits[b, seen] += 1
            for j in seen:
                for u in seen[: seen.index(j)]:
                    before[b, u, j] += u != root
        before[b, :, root] = 0
    assert torch.equal(walks.hits().float(), hits)
    expected = before.amax(1) / hits.clamp(min=1)
    expected[0, 3] = expected[1, 20] = 0
    got = walks.bottleneck()
    got[0, 3] = got[1, 20] = 0
    assert torch.allclose(got.float(), expected)


def test_turns_follow_the_weights() -> None:
    walked = graph(4, (0, 1, 1.0), (0, 2, 2.0), (0, 3, 5.0))
    hits = DecayWalks(alpha=0.0, walks=16000).run(walked, torch.tensor([0]), draws(0)).hits()[0]
    share = hits[1:] / 16000
    chance = torch.tensor([1, 2, 5]) / 8
    assert bool(((share - chance).abs() < 4 * (chance * (1 - chance) / 16000).sqrt()).all())


def test_walks_do_not_depend_on_what_shares_the_batch() -> None:
    _, walked = karate()
    both = DecayWalks(walks=50).run(walked, torch.tensor([5, 9]), draws(5, 9)).path[1]
    alone = DecayWalks(walks=50).run(walked, torch.tensor([9]), draws(9)).path[0]
    width = alone.shape[1]
    assert torch.equal(both[:, :width], alone)
    assert bool((both[:, width:] == -1).all())


def test_changed_edges_are_walked_again_with_the_law_of_fresh_walks() -> None:
    alpha, n, each = 0.2, 5, 30_000
    old = graph(n, (0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (1, 3, 1.0))
    new = graph(n, (0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (1, 3, 3.0), (3, 4, 1.0))
    walker = DecayWalks(alpha=alpha, walks=each)
    start = walker.run(old, torch.tensor([0]), draws(0))
    kept = walker.again(new, start, torch.tensor([1, 3]), draws(0, purpose="again"))
    fresh = walker.run(new, torch.tensor([0]), draws(0, purpose="fresh"))
    a, b = kept.visits()[0] / each, fresh.visits()[0] / each
    assert float((start.visits()[0] / each - b).abs().max()) > 0.1
    assert float((a - b).abs().max()) < 0.03
    # Walks that never left a changed node are the old ones, node by node.
    untouched = ~torch.isin(start.path[0], torch.tensor([1, 3])).any(1)
    width = min(start.path.shape[2], kept.path.shape[2])
    assert bool(untouched.any())
    assert torch.equal(kept.path[0, untouched, :width], start.path[0, untouched, :width])


def test_nothing_changed_keeps_every_walk() -> None:
    _, walked = karate()
    walker = DecayWalks(walks=100)
    start = walker.run(walked, torch.tensor([0]), draws(0))
    kept = walker.again(walked, start, torch.tensor([], dtype=torch.int64), draws(0, purpose="again"))
    assert torch.equal(kept.path, start.path)


def test_unreachable_nodes_have_no_reputation() -> None:
    walked = graph(5, (0, 1, 1.0), (1, 0, 1.0), (3, 4, 1.0))
    view = MeritRank(walks=500).rank(walked, torch.tensor([0]), draws(0))[0]
    assert view[2:].tolist() == [0, 0, 0]
    assert float(view[1]) > 0


def test_connectivity_decay_cuts_what_lies_behind_one_node() -> None:
    walked = graph(4, (0, 1, 1.0), (0, 2, 1.0), (1, 3, 1.0), (1, 0, 1.0), (2, 0, 1.0), (3, 0, 1.0))
    plain = MeritRank(beta=0.0, walks=4000).rank(walked, torch.tensor([0]), draws(0))[0]
    cut = MeritRank(beta=0.9, walks=4000).rank(walked, torch.tensor([0]), draws(0))[0]
    assert torch.allclose(cut[1:3], plain[1:3])
    assert float(cut[3]) == pytest.approx(0.1 * float(plain[3]))


def test_a_stopped_walk_goes_nowhere_and_epochs_forget() -> None:
    _, walked = karate()
    assert float(MeritRank(alpha=1.0, walks=10).rank(walked, torch.tensor([0]), draws(0)).sum()) == 0
    one = torch.ones(1, 3, dtype=torch.float64)
    assert MeritRank(gamma=0.1).epoch(one, 2 * one).tolist() == [[2.9, 2.9, 2.9]]


def test_max_flow_against_networkx() -> None:
    known, _ = karate()
    edges = [(a, b, w) for a, b, w in known.edges(data="weight")]
    flow = max_flow(34, *(torch.tensor(v) for v in zip(*edges, strict=True)), seed=0)
    assert flow[[9, 25]].tolist() == [nx.maximum_flow_value(known, 0, j, "weight") for j in (9, 25)]


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ("path", 3, {(7, 10), (10, 11), (11, 12)}),
        ("cycle", 3, {(7, 10), (10, 11), (11, 12), (12, 7)}),
        ("parallel", 3, {(7, 10), (7, 11), (7, 12)}),
        ("ring", 3, {(7, 10), (10, 11), (11, 12), (12, 10)}),
        ("ring", 1, {(7, 10)}),
        ("cycle", 1, {(7, 10), (10, 7)}),
    ],
)
def test_regions(shape: str, size: int, expected: set[tuple[int, int]]) -> None:
    source, target, weight = Region(shape, size).edges(7, 10)
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == expected
    assert weight.tolist() == [1e4] * len(expected)


def test_the_attacker_is_the_second_heaviest_neighbour() -> None:
    work = Reputation("karate", sybils=Region("path", 4)).open(Place.whole(38, 3))
    near = sorted(
        nx.karate_club_graph()[work.victim].items(), key=lambda item: (-item[1]["weight"], item[0])
    )
    assert work.attacker == near[1][0]
    assert work.told(0, 1)[work.attacker][-1] == [34, 1e4]


def test_periods_reveal_all_feedback_once() -> None:
    work = Reputation("karate", periods=3).open(Place.whole(34, 0))
    sums = torch.zeros(34, 34, dtype=torch.float64)
    for tick in range(9):
        for peer, news in enumerate(work.told(tick, 9)):
            for about, weight in news:
                sums[peer, about] += weight
    known = torch.from_numpy(nx.to_numpy_array(nx.karate_club_graph(), weight="weight"))
    assert torch.equal(sums, known)


def test_gossip_brings_everyone_the_whole_graph() -> None:
    report = run(
        "meritrank", task={"name": "reputation", "graph": "karate"}, peers=34, rounds=20, seed=100,
        network={"graph": "regular(degree=4)"}, epoch_ticks=20, walks=2000, beta=0.0,
    )  # fmt: skip
    entries = 2 * nx.karate_club_graph().number_of_edges()
    assert report.metrics["known_min"] == entries
    assert report.metrics["agreement"] > 0.9
    assert report.bytes_sent > 0


def test_sybils_gain_no_more_than_the_bound_when_gossiped() -> None:
    task = {"name": "reputation", "graph": "karate", "sybils": {"shape": "ring", "size": 6}}
    gains = {}
    for beta in (0.0, 0.9):
        report = run("meritrank", task=task, peers=40, rounds=10, seed=100, epoch_ticks=10, beta=beta,
                     network={"graph": "complete"})  # fmt: skip
        gains[beta] = report.metrics["sybil_gain"]
    bound = 0.85 / 0.15
    assert gains[0.0] <= 1.1 * bound
    assert gains[0.9] <= 0.5 * gains[0.0]


@pytest.mark.parametrize("check", list(CHECKS))
def test_conforms(check: str) -> None:
    CHECKS[check](GossipedMeritRank())


def test_signed_feedback_runs_alike() -> None:
    pytest.importorskip("cryptography")
    plan = {"task": {"name": "reputation", "graph": "karate"}, "peers": 6, "rounds": 4, "seed": 1,
            "network": {"graph": "ring"}, "epoch_ticks": 2, "walks": 50}  # fmt: skip
    plain, signed = run("meritrank", **plan), run("meritrank", signed=True, **plan)
    assert torch.equal(plain.output, signed.output)
    assert signed.bytes_sent > plain.bytes_sent


@pytest.mark.parametrize(
    "fields", [{"beta": 1.2}, {"beta": -0.1}, {"theta": 2.0}, {"alpha": -1.0}, {"walks": 0}, {"gamma": 3.0}]
)
def test_bad_fields(fields: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        MeritRank(**fields)


def test_bad_graphs(tmp_path) -> None:
    with pytest.raises(BadInput, match="weight"):
        graph(2, (0, 1, -1.0))
    with pytest.raises(BadInput, match="alpha"):
        MeritRank(alpha=0.0).rank(graph(2, (0, 1, 1.0), (1, 0, 1.0)), torch.tensor([0]), draws(0))
    with pytest.raises(BadInput, match="seed"):
        MeritRank().rank(graph(2, (0, 1, 1.0)), torch.tensor([2]), draws(2))
    with pytest.raises(BadInput, match="seed"):
        max_flow(2, torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), seed=5)
    with pytest.raises(BadInput, match="graph"):
        load_feedback("nowhere")
    for line in ("a,b,-1", "a,a,1", "a,b", "a,b,nan"):
        file = tmp_path / "edges.csv"
        file.write_text(line + "\n")
        with pytest.raises(BadInput, match="graph"):
            load_feedback(str(file))
    with pytest.raises(BadInput, match="34 members"):
        Reputation("karate").open(Place.whole(35))


def test_own_edge_list(tmp_path) -> None:
    file = tmp_path / "edges.csv"
    file.write_text("x,y,2\ny,z,1.5,7\nx,y,1\n")
    source, target, weight = load_feedback(str(file)).total()
    assert (source.tolist(), target.tolist(), weight.tolist()) == ([0, 1], [1, 2], [3.0, 1.5])


def test_thiers_is_read_from_the_wheel() -> None:
    try:
        contacts = load_feedback("thiers")
    except MissingExtra as error:
        pytest.skip(str(error))
    assert contacts.n == 180
    assert len(contacts.source) == 2 * 45_047
