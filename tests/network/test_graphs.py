"""Graphs: shapes, determinism, exact averaging, bad input."""

from __future__ import annotations

import math
import time

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, topologies
from shoal.network.graphs.base import group_of, undirected
from shoal.network.spectrum import facts, jointly_connected
from shoal.network.weights import check_weights, make_graph, weightings

METROPOLIS = weightings("metropolis")
DIRECTED = {"exponential", "one-peer-exponential", "random-peer"}
NEEDS_USER = {"edge-list", "networkx"}
ALL = sorted({c.slug for s, c in topologies.classes().items() if s not in NEEDS_USER})


def graph(spec, n, seed=0, tick=0, weights=METROPOLIS):
    return make_graph(topologies(spec), weights, n, seed, tick)


def as_networkx(spec, n, seed=0, tick=0):
    src, dst = topologies(spec).edges(n, seed, tick)
    g = networkx.Graph()
    g.add_nodes_from(range(n))
    g.add_edges_from(zip(src.tolist(), dst.tolist(), strict=True))
    return g


@pytest.mark.parametrize("slug", ALL)
@pytest.mark.parametrize("n", [16, 32])
def test_contract(slug, n):
    """int64 edges, in range, no loops, no duplicates, pure in (n, seed, tick), rows sum to 1."""
    part = topologies(slug)
    for tick in (0, 3):
        src, dst = part.edges(n, 7, tick)
        again = part.edges(n, 7, tick)
        assert torch.equal(src, again[0]) and torch.equal(dst, again[1])
        assert src.dtype == dst.dtype == torch.int64
        assert len(src) and int(min(src.min(), dst.min())) >= 0 and int(max(src.max(), dst.max())) < n
        assert not bool((src == dst).any())
        assert len(torch.unique(src * n + dst)) == len(src)
        check_weights(graph(slug, n, 7, tick))
    if slug not in DIRECTED | {"windows"}:
        assert undirected(n, src, dst)
        check_weights(graph(slug, n, 7), symmetric=True)


@pytest.mark.parametrize("slug", ALL)
def test_static_says_whether_the_tick_matters(slug):
    part = topologies(slug)
    differ = any(
        not torch.equal(part.edges(16, 0, 0)[1], part.edges(16, 0, t)[1])
        or not torch.equal(part.edges(16, 0, 0)[0], part.edges(16, 0, t)[0])
        for t in range(1, 6)
    )
    assert differ != part.static


@pytest.mark.parametrize(
    ("spec", "n", "reference"),
    [
        ("ring", 9, networkx.cycle_graph(9)),
        ("ring", 2, networkx.path_graph(2)),
        ("path", 9, networkx.path_graph(9)),
        ("star", 9, networkx.star_graph(8)),
        ("complete", 6, networkx.complete_graph(6)),
        ("barbell", 16, networkx.barbell_graph(8, 0)),
        ("barbell(bridge=3)", 13, networkx.barbell_graph(5, 3)),
        ("grid(rows=3)", 12, networkx.grid_2d_graph(3, 4)),
        ("torus", 20, networkx.grid_2d_graph(4, 5, periodic=True)),
        ("torus(rows=2)", 10, networkx.grid_2d_graph(2, 5, periodic=True)),
        ("components(parts=3)", 12, networkx.disjoint_union_all([networkx.cycle_graph(4)] * 3)),
        ("random-regular(degree=7)", 8, networkx.complete_graph(8)),
    ],
)
def test_equals_networkx(spec, n, reference):
    mine = as_networkx(spec, n)
    if "grid" in spec or "torus" in spec:
        reference = networkx.convert_node_labels_to_integers(reference, ordering="sorted")
    assert set(mine.edges) == {tuple(sorted(e)) for e in reference.edges}


def test_one_peer_alone():
    for slug in set(ALL) - {"barbell", "barabasi-albert", "watts-strogatz"}:
        if slug in {"random-regular", "fresh-regular", "sbm", "components"}:
            continue
        assert len(topologies(slug).edges(1, 0, 0)[0]) == 0, slug


@pytest.mark.parametrize("tau", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("slug", ["one-peer-exponential", "hypercube"])
def test_finite_time_averaging(slug, tau):
    """tau consecutive mixing matrices multiply to J exactly, from any tick on."""
    n = 2**tau
    for first in (0, 3):
        product = torch.eye(n, dtype=torch.float64)
        for tick in range(first, first + tau):
            product = graph(slug, n, tick=tick).matrix() @ product
        assert torch.equal(product, torch.full((n, n), 1 / n, dtype=torch.float64))


@pytest.mark.parametrize("n", [8, 16, 20])
def test_exponential_second_eigenvalue(n):
    found = facts(graph("exponential", n))
    tau = math.ceil(math.log2(n))
    assert found["lambda2"] == pytest.approx(1 - 2 / (1 + tau), abs=1e-12)
    assert found["doubly_stochastic"] and not found["symmetric"]


@pytest.mark.parametrize("n", [5, 8, 17])
def test_ring_eigenvalues(n):
    values = torch.linalg.eigvalsh(graph("ring", n).matrix())
    k = torch.arange(n, dtype=torch.float64)
    expected = (1 / 3 + 2 / 3 * torch.cos(2 * math.pi * k / n)).sort().values
    assert torch.allclose(values, expected, atol=1e-12)


@given(n=st.integers(2, 40), degree=st.integers(1, 39), seed=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_regular_graphs_are_regular(n, degree, seed):
    part = topologies({"name": "fresh-regular", "degree": degree})
    if degree >= n or n * degree % 2:
        with pytest.raises(BadInput, match="degree"):
            part.edges(n, seed, 0)
        return
    src, dst = part.edges(n, seed, 0)
    assert torch.equal(torch.bincount(dst, minlength=n), torch.full((n,), degree))
    assert undirected(n, src, dst) and not bool((src == dst).any())


def test_matching_pairs_each_peer_once():
    for n in (16, 17):
        src, dst = topologies("matching").edges(n, 0, 4)
        assert int(torch.bincount(dst, minlength=n).max()) == 1 and len(src) == n // 2 * 2
    assert jointly_connected(topologies("matching"), 16, 0, 0, 12)
    assert not jointly_connected(topologies("matching"), 16, 0, 0, 1)


def test_erdos_renyi_frequencies():
    """Each pair is an edge about as often as p says, first and last pairs as well as the middle."""
    part, n, draws = topologies("erdos-renyi(p=0.3, connected=false)"), 12, 400
    count = torch.zeros(n, n)
    for seed in range(draws):
        src, dst = part.edges(n, seed, 0)
        count[dst, src] += 1
    off = ~torch.eye(n, dtype=torch.bool)
    share = count[off] / draws
    assert float(share.mean()) == pytest.approx(0.3, abs=0.012)  # 66 x 400 coins: sd 0.0028
    assert float((share - 0.3).abs().max()) < 0.115  # each sd 0.023


def test_sbm_frequencies():
    n, inside, between = 40, 0, 0
    group = group_of(n, 4)
    for seed in range(40):
        src, dst = topologies("sbm(groups=4, p_in=0.5, p_out=0.1, connected=false)").edges(n, seed, 0)
        same = group[src] == group[dst]
        inside, between = inside + int(same.sum()), between + int((~same).sum())
    assert inside / (40 * 40 * 9) == pytest.approx(0.5, abs=0.03)
    assert between / (40 * 40 * 30) == pytest.approx(0.1, abs=0.01)


def test_geometric_is_monotone_in_the_radius():
    far = networkx.complete_graph(30)
    for radius in (1.5, 0.8, 0.5):
        near = as_networkx({"name": "geometric", "radius": radius, "connected": False}, 30, 3)
        assert set(near.edges) <= set(far.edges)
        # A disc of that radius holds about pi r^2 of the square, less what the border cuts off.
        share = near.number_of_edges() / math.comb(30, 2)
        assert share == pytest.approx({1.5: 1.0, 0.8: 0.85, 0.5: 0.5}[radius], abs=0.12)
        far = near


def test_random_peer():
    part = topologies("random-peer(p=0.25)")
    heard, spoke = torch.zeros(20), torch.zeros(20)
    for tick in range(400):
        src, dst = part.edges(20, 0, tick)
        assert len(torch.unique(dst)) == len(dst)
        heard[dst] += 1
        spoke[src] += 1
    assert float(heard.mean() / 400) == pytest.approx(0.25, abs=0.02)
    assert float(spoke.max()) < 160 and float(spoke.min()) > 50  # 100 +- 10
    w = graph(part, 20, tick=3).matrix()
    assert set(w.diagonal().tolist()) <= {0.5, 1.0} and torch.equal(w.sum(1), torch.ones(20).double())


def test_cycle_and_windows_switch():
    cycle = topologies({"name": "cycle", "graphs": ("ring", "one-peer-exponential")})
    assert torch.equal(graph(cycle, 8, tick=4).matrix(), graph("ring", 8).matrix())
    assert torch.equal(graph(cycle, 8, tick=5).matrix(), graph("one-peer-exponential", 8, tick=2).matrix())
    windows = topologies("windows(inner=ring, start=2, length=3)")
    lazy = weightings("lazy")
    for tick in range(7):
        w = graph(windows, 8, tick=tick).matrix()
        expected = torch.full((8, 8), 1 / 8).double() if 2 <= tick < 5 else graph("ring", 8).matrix()
        assert torch.allclose(w, expected, atol=1e-15)
    assert not torch.allclose(graph(windows, 8, tick=2, weights=lazy).matrix(), expected)
    again = topologies("windows(inner=ring, start=1, length=1, every=4)")
    full = [graph(again, 8, tick=t).edges == 56 for t in range(10)]
    assert full == [t % 4 == 1 for t in range(10)]


def test_components_keep_the_inner_weights():
    part = topologies({"name": "components", "parts": 2, "inner": "one-peer-exponential"})
    assert not part.static and topologies("components").static
    w = graph(part, 8, tick=1).matrix()
    inner = graph("one-peer-exponential", 4, tick=1).matrix()
    assert torch.equal(w, torch.block_diag(inner, inner))
    assert facts(graph("components(parts=3)", 12))["components"] == 3


def test_edge_list(tmp_path):
    file = tmp_path / "edges.txt"
    file.write_text("# a triangle\n0 1\n1 2  # second\n\n2 0\n")
    mine = topologies({"name": "edge-list", "file": str(file)})
    assert torch.equal(graph(mine, 3).matrix(), graph("complete", 3).matrix())
    file.write_text("0 1 0.25\n1 2 0.5\n")
    w = graph(mine, 3).matrix()
    assert torch.equal(w, torch.tensor([[0.75, 0.25, 0], [0.25, 0.25, 0.5], [0, 0.5, 0.5]]).double())
    one_way = topologies({"name": "edge-list", "file": str(file), "directed": True})
    w = graph(one_way, 3).matrix()
    assert torch.equal(w, torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]]).double())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0 1\nfoo bar\n", 2), ("0 1\n0 7\n", 2), ("0\n", 1), ("1 1\n", 1), ("0 1\n\n1 0\n", 3),
        ("0 1 nan\n", 1), ("0 1 -1\n", 1), ("0 1 0.5\n1 2\n", 2), ("0 1 0.5 9\n", 1), ("-1 0\n", 1),
    ],
)  # fmt: skip
def test_edge_list_names_the_line(tmp_path, text, line):
    file = tmp_path / "edges.txt"
    file.write_text(text)
    with pytest.raises(BadInput, match=f"line {line} of") as error:
        graph({"name": "edge-list", "file": str(file)}, 4)
    assert "\n" not in str(error.value)


def test_edge_list_refuses_heavy_rows_and_missing_files(tmp_path):
    file = tmp_path / "edges.txt"
    file.write_text("0 1 0.7\n0 2 0.7\n")
    with pytest.raises(BadInput, match="into peer 0 must sum to at most 1"):
        graph({"name": "edge-list", "file": str(file)}, 3)
    with pytest.raises(BadInput, match="not readable"):
        graph({"name": "edge-list", "file": str(tmp_path / "none")}, 3)


def test_networkx_graphs():
    part = topologies.find("networkx")
    assert torch.equal(graph(part(graph=networkx.cycle_graph(7)), 7).matrix(), graph("ring", 7).matrix())
    arrows = networkx.DiGraph([("a", "b"), ("b", "c")])
    src, dst = part(graph=arrows).edges(3, 0, 0)
    assert (src.tolist(), dst.tolist()) == ([0, 1], [1, 2])
    weighted = networkx.Graph()
    weighted.add_edge(0, 1, w=0.25)
    assert graph(part(graph=weighted, weight="w"), 2).matrix().tolist() == [[0.75, 0.25], [0.25, 0.75]]
    with pytest.raises(BadInput, match="as many nodes as peers"):
        graph(part(graph=networkx.cycle_graph(7)), 8)
    with pytest.raises(BadInput, match="networkx"):
        topologies("networkx")


@pytest.mark.parametrize(
    ("spec", "n", "field"),
    [
        ("hypercube", 12, "peers"),
        ("complete", 10_001, "peers"),
        ("torus(rows=5)", 16, "rows"),
        ("star(hub=9)", 9, "hub"),
        ("barbell(bridge=7)", 8, "bridge"),
        ("random-regular(degree=3)", 7, "degree"),
        ("random-regular(degree=1)", 8, "degree"),
        ("erdos-renyi(p=0.01)", 50, "p"),
        ("geometric(radius=0.01)", 50, "radius"),
        ("barabasi-albert(m=8)", 8, "m"),
        ("watts-strogatz(k=8)", 8, "k"),
        ("components(parts=9)", 8, "parts"),
        ("sbm(groups=9)", 8, "groups"),
    ],
)
def test_refused_on_these_peers(spec, n, field):
    with pytest.raises(BadInput, match=f"graph.{field} = "):
        graph(spec, n)


@pytest.mark.parametrize(
    "spec",
    ["erdos-renyi(p=1.5)", "watts-strogatz(k=3)", "random-peer(p=-1)", "windows(length=5, every=3)",
     "edge-list", "cycle(graphs=[])", "barabasi-albert(m=0)"],
)  # fmt: skip
def test_refused_at_once(spec):
    with pytest.raises(BadInput):
        topologies(spec)


@pytest.mark.parametrize(
    "spec", ["ring", "torus", "exponential", "random-regular", "erdos-renyi(p=0.0015)", "fresh-regular"]
)
def test_ten_thousand_peers_build_fast(spec):
    began = time.perf_counter()
    found = graph(spec, 10_000)
    assert time.perf_counter() - began < 3
    assert found.edges >= 20_000
