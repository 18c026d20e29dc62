"""Clocks: who acts when; groups of events equal one at a time; bad input."""

from __future__ import annotations

import math

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, clocks, topologies, tree
from shoal.network.clocks.arrivals import spread_rates
from shoal.network.clocks.disruption import victims
from shoal.network.clocks.events import disjoint_prefix
from shoal.network.network import Network


def run(clock, n=12, total=20, seed=0, graph="complete", first=0, state=None):
    if not isinstance(clock, str):
        clock = tuple(clocks(c) for c in (clock if isinstance(clock, tuple) else (clock,)))
    net = Network(graph=graph, clock=clock)
    return [t for t, _ in net.ticks(n, seed, total, first, state)]


def history(ticks, n):
    """The events one by one, as every peer saw them: [(time, kind, partner or None)]."""
    seen = [[] for _ in range(n)]
    for tick in ticks:
        pairs = list(zip(tick.graph.dst.tolist(), tick.graph.src.tolist(), strict=True))
        touched = set(tick.active.nonzero()[:, 0].tolist()) | {i for i, _ in pairs}
        partner = dict(pairs)
        assert len(partner) == len(pairs)  # nobody meets two peers in one tick
        for i in touched:
            seen[i].append((float(tick.time[i]), bool(tick.active[i]), partner.get(i)))
    return seen


def same_up_to(a, b):
    """The longest common time of two histories, up to which they must be equal."""
    end = min(max((h[-1][0] for h in x if h), default=0.0) for x in (a, b))
    return [[e for e in h if e[0] < end] for h in a], [[e for e in h if e[0] < end] for h in b]


SLUGS = ["poisson-peer", "poisson-edge", "poisson-pair"]


@given(
    slug=st.sampled_from(SLUGS),
    graph=st.sampled_from(["ring", "complete", "star", "random-regular(degree=3)", "path"]),
    n=st.integers(4, 20).map(lambda k: 2 * k),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_groups_equal_one_at_a_time(slug, graph, n, seed):
    grouped = run({"name": slug}, n, 20, seed, graph)
    single = run({"name": slug, "group": False}, n, 120, seed, graph)
    a, b = same_up_to(history(grouped, n), history(single, n))
    assert a == b and sum(map(len, a)) > 20
    assert all(int(t.active.sum()) + t.graph.edges <= 4 for t in single)


def test_groups_equal_one_at_a_time_while_peers_are_down():
    n = 10
    gone = {"name": "churn", "schedule": [[0, "crash", [2, 5]]]}
    grouped = run((gone, {"name": "poisson-pair"}), n, 40, 3, "ring")
    single = run((gone, {"name": "poisson-pair", "group": False}), n, 300, 3, "ring")
    a, b = same_up_to(history(grouped, n), history(single, n))
    assert a == b and not a[2] and not a[5] and a[0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_disjoint_prefix(events):
    a, b = (torch.tensor(x) for x in zip(*events, strict=True))
    count, touched = 0, set()
    for i, j in events:
        if {i, j} & touched:
            break
        touched |= {i, j}
        count += 1
    assert disjoint_prefix(a, b) == count


@pytest.mark.parametrize("slug", SLUGS)
def test_event_clocks_resume(slug):
    net = Network(graph="ring", clock=slug)
    whole = list(net.ticks(10, 0, 30, 0, None))
    rest = list(net.ticks(10, 0, 30, 12, tree.map_leaves(torch.clone, whole[11][1])))
    assert len(rest) == 18
    for (a, _), (b, _) in zip(whole[12:], rest, strict=True):
        assert torch.equal(a.time, b.time) and torch.equal(a.active, b.active)
        assert torch.equal(a.graph.src, b.graph.src) and a.index == b.index


@pytest.mark.parametrize("slug", SLUGS)
def test_event_graphs_average_pairs(slug):
    before = torch.zeros(10, dtype=torch.float64)
    for tick in run({"name": slug}, 10, 50, graph="ring"):
        w = tick.graph.matrix()
        assert torch.equal(w, w.T) and torch.equal(w @ w, w)  # pair averages are projections
        assert set(w.flatten().tolist()) <= {0.0, 0.5, 1.0}
        assert bool((tick.time >= before).all())
        gap = (tick.graph.src - tick.graph.dst).abs()
        assert bool(((gap == 1) | (gap == 9)).all())
        before = tick.time


def test_poisson_peer_rates():
    """Peers wake at their rates; intervals have mean 1 / total and the variance of an exponential."""
    rates = [1.0] * 8 + [4.0] * 2
    ticks = run({"name": "poisson-peer", "rates": rates, "group": False}, 10, 3000)
    wakes = torch.stack([t.active for t in ticks]).sum(0)
    end = float(ticks[-1].time.max())
    assert end == pytest.approx(3000 / 16, rel=0.06)
    assert float(wakes[8:].sum() / wakes.sum()) == pytest.approx(0.5, abs=0.03)
    times = torch.tensor([float(t.time.max()) for t in ticks])
    gap = times.diff()
    assert float(gap.std() / gap.mean()) == pytest.approx(1, abs=0.08)
    assert all(t.graph.edges == 2 and bool(t.active[t.graph.src].sum() == 1) for t in ticks[:50])


def test_poisson_peer_alone_without_neighbours():
    ticks = run("poisson-peer", 6, 10, graph="components(parts=6)")
    assert all(t.graph.edges == 0 and bool(t.active.any()) for t in ticks)


def test_poisson_edge_rates():
    rates = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # {0,1} first of the sorted edges of a ring of 6
    ticks = run({"name": "poisson-edge", "rates": rates, "group": False}, 6, 2000, graph="ring")
    first = sum(t.graph.src.tolist() == [1, 0] for t in ticks)
    assert first / 2000 == pytest.approx(3 / 8, abs=0.035)
    assert float(ticks[-1].time.max()) == pytest.approx(2000 / 8, rel=0.07)
    assert all(int(t.active.sum()) == 2 for t in ticks)
    uniform = run({"name": "poisson-edge", "group": False}, 6, 2000, graph="ring")
    assert float(uniform[-1].time.max()) == pytest.approx(2000 / 6, rel=0.07)


def test_poisson_pair_rates():
    """Gradients come at rate 1 a peer, edges at sqrt(2 chi1 chi2) together."""
    n = 10
    part = clocks("poisson-pair")
    graph = Network(graph="ring").graph_at(n, 0, 0)
    # Rates 1/n each: lambda_2 = (2 - 2 cos(2 pi / n)) / n and resistance n (n - 1) / n.
    expected = math.sqrt(2 * n / (2 - 2 * math.cos(2 * math.pi / n)) * (n - 1) / 2)
    assert part.total_rate(graph) == pytest.approx(expected)
    ticks = run("poisson-pair", n, 2000, graph="ring")
    gradients = sum(int(t.active.sum()) for t in ticks)
    edges = sum(t.graph.edges // 2 for t in ticks)
    end = float(ticks[-1].time.max())
    assert gradients / end == pytest.approx(n, rel=0.07)
    assert edges / end == pytest.approx(expected, rel=0.07)
    assert not any(bool(t.active[t.graph.src].any()) for t in ticks)
    fixed = run("poisson-pair(total=30)", n, 2000, graph="ring")
    share = sum(t.graph.edges // 2 for t in fixed) / sum(
        t.graph.edges // 2 + int(t.active.sum()) for t in fixed
    )
    assert share == pytest.approx(0.75, abs=0.03)


def test_poisson_pair_optimal_rates_cut_the_barbell():
    graph = Network(graph="barbell").graph_at(16, 0, 0)
    slow = clocks("poisson-pair").total_rate(graph)
    fast = clocks("poisson-pair(rates=optimal)").total_rate(graph)
    assert slow / fast >= 2.5


# -- rounds ----------------------------------------------------------------------------------------


def test_rounds_change_nothing():
    for tick in run("rounds"):
        assert bool(tick.active.all()) and tick.graph.edges == 132 and tick.steps is None


@pytest.mark.parametrize(
    ("fraction", "n", "count"), [(0.0, 12, 1), (0.05, 12, 1), (0.29, 100, 29), (0.5, 13, 6), (1.0, 9, 9)]
)
def test_participation_uniform_counts(fraction, n, count):
    ticks = run({"name": "participation", "fraction": fraction}, n, 5)
    for tick in ticks:
        assert int(tick.active.sum()) == count
        assert bool(tick.active[tick.graph.src].all() and tick.active[tick.graph.dst].all())
        assert tick.graph.edges == count * (count - 1)
        w = tick.graph.matrix()
        assert torch.allclose(w.sum(1), torch.ones(n).double())


def test_participation_is_fair_and_fresh():
    ticks = run("participation(fraction=0.25)", 20, 800)
    share = torch.stack([t.active for t in ticks]).double().mean(0)
    assert float((share - 0.25).abs().max()) < 0.06
    assert len({tuple(t.active.tolist()) for t in ticks}) > 700


def test_participation_own_will():
    rates = [0.0, 1.0, 0.3, 0.7]
    ticks = run({"name": "participation", "kind": "bernoulli", "rates": rates}, 4, 1000)
    share = torch.stack([t.active for t in ticks]).double().mean(0)
    assert torch.allclose(share, torch.tensor(rates).double(), atol=0.05)


def test_one_peer():
    ticks = run("one-peer", 8, 800, graph="ring")
    share = torch.stack([t.active for t in ticks]).double().sum(0)
    assert float(share.min()) > 60 and float(share.max()) < 145
    for tick in ticks[:20]:
        peer = int(tick.active.nonzero())
        assert int(tick.active.sum()) == 1 and tick.graph.edges == 4
        assert bool(((tick.graph.src == peer) | (tick.graph.dst == peer)).all())


def test_stragglers():
    part = clocks("stragglers(slow=0.25, factor=4)")
    speed = part.speed(16, 0)
    assert sorted(speed.tolist()) == [0.25] * 4 + [1.0] * 12
    assert torch.equal(Network(clock=part).speed(16, 0), speed)
    assert run(part, 16, 1)[0].steps is None
    tick = run("stragglers(slow=0.25, factor=4, deadline=10)", 16, 1)[0]
    assert torch.equal(tick.steps, torch.where(speed < 1, 2, 10)) and bool(tick.active.all())
    late = run("stragglers(slow=0.25, factor=4, deadline=3)", 16, 1)[0]
    assert torch.equal(late.active, speed == 1) and late.graph.edges == 12 * 11


def test_churn_rates_and_states():
    ticks = run("churn(crash=0.1, rejoin=0.3)", 50, 300)
    share = torch.stack([t.active for t in ticks[50:]]).double().mean()
    assert float(share) == pytest.approx(0.75, abs=0.03)  # rejoin / (crash + rejoin)
    leave = torch.stack([t.active for t in run("churn(leave=0.1)", 50, 60)]).long()
    assert bool((leave.diff(dim=0) <= 0).all()) and int(leave[-1].sum()) < 5
    grow = torch.stack([t.active for t in run("churn(join=0.2, initial=0.5)", 20, 40)]).long()
    assert bool((grow.diff(dim=0) >= 0).all()) and int(grow[-1].sum()) == 20 > int(grow[0].sum())


def test_churn_schedule():
    plan = ((3, "crash", 0.5), (6, "rejoin", 1.0), (8, "leave", (0, 1)), (9, "join", (0,)))
    active = [int(t.active.sum()) for t in run({"name": "churn", "schedule": plan}, 10, 12)]
    assert active == [10] * 3 + [5] * 3 + [10] * 2 + [8] * 4
    last = run({"name": "churn", "schedule": plan}, 10, 12)[-1]
    assert not bool(last.active[:2].any()) and last.graph.edges == 8 * 7


def test_disruption():
    n = 30
    net = Network(graph="barabasi-albert(m=2)")
    graph = net.graph_at(n, 0, 0)
    degree = graph.in_degree().tolist()
    top = sorted(range(n), key=lambda i: (-degree[i], i))[:6]
    leaves = sorted(range(n), key=lambda i: (degree[i], i))[:6]
    g = networkx.Graph(list(zip(graph.src.tolist(), graph.dst.tolist(), strict=True)))
    central = networkx.betweenness_centrality(g)
    between = sorted(range(n), key=lambda i: (-round(central[i], 10), i))[:6]
    for who, expected in (("degree", top), ("leaves", leaves), ("betweenness", between)):
        assert victims(graph, 0.2, who, 0).nonzero()[:, 0].tolist() == sorted(expected)
        ticks = run(f"disruption(at=4, fraction=0.2, who={who})", n, 8, graph=net.graph)
        assert all(bool(t.active.all()) for t in ticks[:4])
        assert all((~t.active).nonzero()[:, 0].tolist() == sorted(expected) for t in ticks[4:])
        rows = ticks[-1].graph.matrix().sum(1)
        assert torch.allclose(rows, torch.ones(n).double())
    assert int(victims(graph, 0.2, "random", 0).sum()) == 6
    assert not bool(victims(graph, 0.2, "none", 0).any())
    # Ties go by number: on a ring all degrees are equal.
    ring = Network(graph="ring").graph_at(10, 0, 0)
    assert victims(ring, 0.3, "degree", 0).nonzero()[:, 0].tolist() == [0, 1, 2]


# -- arrivals --------------------------------------------------------------------------------------


@given(m=st.integers(1, 12), delay=st.integers(0, 6), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_arrivals_invariants(m, delay, seed):
    clock = {"name": "arrivals", "m": m, "delay_max": delay, "steps": (2, 5), "spread": 3.0}
    last = torch.full((12,), -1)
    before = torch.zeros(12, dtype=torch.float64)
    for tick in run(clock, 12, 25, seed):
        assert int(tick.active.sum()) == m
        pulled = tick.index - tick.stale[tick.active]
        assert int(tick.stale.max()) <= delay and int(tick.stale.min()) >= 0
        assert bool((pulled > last[tick.active]).all())  # never from before its own last return
        assert int(tick.steps.min()) >= 2 and int(tick.steps.max()) <= 5
        assert bool((tick.time[tick.active] > before[tick.active]).all())
        assert bool((tick.time >= before).all())
        last[tick.active], before = tick.index, tick.time


def test_arrivals_delay_and_steps_are_spread_out():
    ticks = run("arrivals(m=2, delay_max=3, steps=[1, 10])", 50, 600)
    stale = torch.cat([t.stale[t.active] for t in ticks[10:]])
    assert torch.bincount(stale).double().div(len(stale)).sub(0.25).abs().max() < 0.05
    steps = torch.cat([t.steps[t.active] for t in ticks])
    assert set(steps.tolist()) == set(range(1, 11))
    assert float(steps.double().mean()) == pytest.approx(5.5, abs=0.3)


def test_arrivals_rates():
    """20 : 1 by number; one return a tick meets the rates exactly, and so does time."""
    rate = spread_rates(50, 20.0)
    assert float(rate[0] / rate[-1]) == pytest.approx(20) and float(rate.mean()) == pytest.approx(1)
    ticks = run("arrivals(m=1, spread=20)", 10, 2000)
    rate = spread_rates(10, 20.0)
    share = torch.stack([t.active for t in ticks]).double().mean(0)
    assert torch.allclose(share, rate / rate.sum(), atol=0.04)
    assert float(ticks[-1].time.max()) == pytest.approx(2000 / 10, rel=0.07)


def test_compute_times():
    everyone = run("compute-times(m=6)", 6, 4)
    assert all(bool(t.active.all()) and int(t.stale.max()) == 0 for t in everyone)
    assert [float(t.time[0]) for t in everyone] == pytest.approx([1, 2, 3, 4])
    # F 0 and a window of 1 is the same; so is a window as long as the slowest.
    for clock in ("compute-times(spread=0, m=0, window=1)", "compute-times(m=0, window=1)"):
        assert all(bool(t.active.all()) for t in run(clock, 6, 4))
    # Two peers of 1 and 0.4: returns at .4, .8, 1 (peer 0), 1.2, 1.6, 2 (both; lower first), 2 ...
    ticks = run("compute-times(m=1, spread=0.6)", 2, 7)
    assert [int(t.active.nonzero()) for t in ticks[:5]] == [1, 1, 0, 1, 1]
    assert [float(t.time[0]) for t in ticks[:5]] == pytest.approx([0.4, 0.8, 1.0, 1.2, 1.6])
    assert [int(t.stale[t.active]) for t in ticks[:5]] == [0, 0, 2, 1, 0]
    # A window of 0.5 waits for nobody: the fast one returns in each, the slow one in every second.
    windows = run("compute-times(m=0, window=0.5, spread=0.6)", 2, 6)
    assert [t.active.tolist() for t in windows] == [[False, True], [True, True]] * 3
    assert [int(t.stale[0]) for t in windows] == [0, 1] * 3


def test_clocks_chain():
    clock = "churn(crash=0.3)+participation(fraction=0.5)+stragglers(slow=0.5, deadline=8)"
    ticks = run(clock, 20, 10)
    alone = run("churn(crash=0.3)", 20, 10)
    for tick, base in zip(ticks, alone, strict=True):
        assert not bool((tick.active & ~base.active).any())
        assert int(tick.active.sum()) == min(10, int(base.active.sum()))
        assert set(tick.steps.tolist()) == {2, 8}


@pytest.mark.parametrize(
    "slug", sorted({c.slug for c in clocks.classes().values()} - {"poisson-edge", "poisson-pair"})
)
def test_every_clock_is_deterministic_and_saves_its_state(slug, tmp_path):
    net = Network(graph="ring", clock=slug)
    a, b = (list(net.ticks(16, 5, 15, 0, None)) for _ in range(2))
    for (s, _), (t, _) in zip(a, b, strict=True):
        assert torch.equal(s.active, t.active) and torch.equal(s.time, t.time)
        assert torch.equal(s.graph.weight, t.graph.weight)
    held = a[-1][1]
    tree.save(held, tmp_path / "state")
    back = tree.load(held, tree.read(tmp_path / "state"))
    assert tree.leaves(back).keys() == tree.leaves(held).keys()
    for name, leaf in tree.leaves(held).items():
        assert not isinstance(leaf, torch.Tensor) or torch.equal(leaf, tree.leaves(back)[name])


@pytest.mark.parametrize(
    "clock",
    [
        "participation(fraction=1.5)", "participation(rates=[0.5])", "stragglers(factor=0.5)",
        "churn(leave=0.6, crash=0.6)", "disruption(fraction=1)", "disruption(who=hubs)", "arrivals(m=0)",
        "arrivals(delay_max=-1)", "arrivals(steps=[0, 3])", "arrivals(steps=[3, 2])",
        "arrivals(spread=0.5)",
        "compute-times(m=0)", "compute-times(m=2, window=1)", "poisson-peer(rates=[0])",
        "poisson-pair(gradients=0)", "poisson-edge(rates=best)",
        {"name": "churn", "schedule": [[3, "explode", 0.5]]},
        {"name": "churn", "schedule": [[3, "crash", 2.0]]},
    ],
)  # fmt: skip
def test_refused_at_once(clock):
    with pytest.raises(BadInput):
        clocks(clock)


@pytest.mark.parametrize(
    ("clock", "field"),
    [
        ("arrivals(m=13)", "m"), ("compute-times(m=13)", "m"), ("disruption(at=20)", "at"),
        ("disruption(fraction=0.99)", "fraction"), ("poisson-peer(rates=[1, 2])", "rates"),
        ("poisson-edge(rates=[1, 2])", "rates"), ("participation(kind=bernoulli, rates=[1])", "rates"),
        ({"name": "churn", "schedule": [[1, "crash", [12]]]}, "schedule"),
    ],
)  # fmt: skip
def test_refused_before_the_first_tick(clock, field):
    with pytest.raises(BadInput, match=f"clock.{field} = "):
        run(clock)


def test_poisson_pair_refuses_a_graph_in_pieces():
    with pytest.raises(BadInput, match="not connected"):
        run("poisson-pair", graph="components")
    assert run("poisson-pair(total=5)", graph="components")
    with pytest.raises(BadInput, match="undirected"):
        run("poisson-edge", graph="exponential")


def test_no_topology_is_needed_twice():
    """A clock that hands the graph through keeps the very object, so that what is built on it stays."""
    ticks = run("rounds+stragglers(deadline=8)", graph=topologies("ring"))
    assert ticks[0].graph is ticks[5].graph
