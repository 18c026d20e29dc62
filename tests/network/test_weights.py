"""Mixing weights, edge rates, spectra: closed forms and invariants."""

from __future__ import annotations

import math

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, Graph, topologies
from shoal.network.graphs.base import both
from shoal.network.spectrum import chis, facts
from shoal.network.weights import check_weights, make_graph, optimal_rates, weightings


def matrix(weights, spec, n, seed=0):
    return make_graph(topologies(spec), weightings(weights), n, seed, 0).matrix()


@st.composite
def random_edges(draw):
    n = draw(st.integers(2, 14))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    ends = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return n, *both(n, ends[:, 0], ends[:, 1])


@given(random_edges(), st.sampled_from(["metropolis", "laplacian", "lazy", "sinkhorn"]))
@settings(max_examples=120, deadline=None)
def test_symmetric_and_doubly_stochastic(edges, slug):
    n, src, dst = edges
    w = Graph.of(n, src, dst, *weightings(slug)(n, src, dst)).matrix()
    assert torch.equal(w, w.T)
    assert float((w.sum(1) - 1).abs().max()) < 1e-12
    assert float(w.min()) >= 0 and float(w.diagonal().min()) > 0
    if slug == "lazy":
        assert float(torch.linalg.eigvalsh(w).min()) > -1e-12


def test_metropolis_formula():
    w = matrix("metropolis", "star", 5)
    assert w[1, 0] == w[0, 1] == 1 / 5 and w[1, 1] == 4 / 5 and float(w[0, 0]) == pytest.approx(1 / 5)
    path = matrix("metropolis", "path", 3)
    third = torch.tensor([[2, 1, 0], [1, 1, 1], [0, 1, 2]]).double() / 3
    assert torch.allclose(path, third, atol=1e-15)


def test_laplacian_formula():
    g = networkx.path_graph(5)
    laplacian = torch.tensor(networkx.laplacian_matrix(g).toarray()).double()
    assert torch.allclose(matrix("laplacian", "path", 5), torch.eye(5).double() - laplacian / 3, atol=1e-15)


def test_uniform_rows_and_push_columns():
    uniform, push = matrix("uniform", "star", 6), matrix("push", "star", 6)
    assert torch.allclose(uniform.sum(1), torch.ones(6).double()) and uniform[0, 1] == 1 / 6
    assert torch.allclose(push.sum(0), torch.ones(6).double()) and push[0, 1] == 1 / 2
    assert torch.equal(push, uniform.T)
    # Push replaces weights that a directed topology fixes.
    columns = matrix("push", "random-peer", 9).sum(0)
    assert torch.allclose(columns, torch.ones(9).double())
    assert not torch.allclose(matrix("metropolis", "random-peer", 9).sum(0), columns)


def test_lazy_halves_what_the_topology_fixes():
    plain = matrix("metropolis", "exponential", 8)
    assert torch.allclose(matrix("lazy", "exponential", 8), (torch.eye(8).double() + plain) / 2)


def test_sinkhorn_on_a_directed_graph():
    part = topologies.find("networkx")(graph=networkx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]))
    g = make_graph(part, weightings("sinkhorn"), 3, 0, 0)
    w = g.matrix()
    assert float((w.sum(0) - 1).abs().max()) < 1e-12 and float((w.sum(1) - 1).abs().max()) < 1e-12
    assert float(w[g.dst, g.src].min()) > 0
    one_way = topologies.find("networkx")(graph=networkx.DiGraph([(0, 1)]))
    with pytest.raises(BadInput, match="not converged"):
        make_graph(one_way, weightings("sinkhorn"), 2, 0, 0)


def test_undirected_weights_refuse_directed_graphs():
    part = topologies.find("networkx")(graph=networkx.DiGraph([(0, 1), (1, 2), (2, 0)]))
    for slug in ("metropolis", "laplacian", "optimal"):
        with pytest.raises(BadInput, match="undirected"):
            make_graph(part, weightings(slug), 3, 0, 0)


def test_checks():
    ring = make_graph(topologies("ring"), weightings("metropolis"), 8, 0, 0)
    check_weights(ring, symmetric=True, connected=True, columns=True)
    exponential = make_graph(topologies("exponential"), weightings("metropolis"), 8, 0, 0)
    check_weights(exponential, connected=True, columns=True)
    with pytest.raises(BadInput, match="symmetric"):
        check_weights(exponential, symmetric=True)
    star = make_graph(topologies("star"), weightings("uniform"), 8, 0, 0)
    check_weights(star)
    with pytest.raises(BadInput, match="symmetric"):
        check_weights(star, symmetric=True)
    with pytest.raises(BadInput, match="column 0"):
        check_weights(star, columns=True)
    push = make_graph(topologies("star"), weightings("push"), 8, 0, 0)
    check_weights(push, columns=True)
    with pytest.raises(BadInput, match="row 0"):
        check_weights(push)
    parts = make_graph(topologies("components"), weightings("metropolis"), 8, 0, 0)
    check_weights(parts, symmetric=True)
    with pytest.raises(BadInput, match="2 components"):
        check_weights(parts, connected=True)
    bad = Graph(8, ring.src, ring.dst, ring.weight * float("nan"), ring.self_weight)
    with pytest.raises(BadInput, match="finite"):
        check_weights(bad)


def test_unknown_weighting_names_the_nearest():
    with pytest.raises(BadInput, match="metropolis"):
        weightings("metropoli")


def norm(w):
    return float(torch.linalg.matrix_norm(w - 1 / len(w), 2))


@pytest.mark.parametrize("spec", ["path", "barbell", "star", "erdos-renyi(p=0.4)"])
def test_optimal_weights_mix_fastest(spec):
    best = norm(matrix("optimal", spec, 8))
    for slug in ("metropolis", "laplacian", "lazy"):
        assert best <= norm(matrix(slug, spec, 8)) + 1e-6
    g = make_graph(topologies(spec), weightings("optimal"), 8, 0, 0)
    check_weights(g, symmetric=True)


def test_optimal_weights_of_complete_and_path():
    assert norm(matrix("optimal", "complete", 6)) < 1e-6
    # Xiao and Boyd: on a path the best constant weight 1/2 is optimal; ||W - J|| = cos(pi / n).
    assert norm(matrix("optimal", "path", 6)) == pytest.approx(math.cos(math.pi / 6), abs=1e-6)


@pytest.mark.parametrize(("spec", "n"), [("ring", 10), ("star", 9), ("complete", 5)])
def test_optimal_rates_are_uniform_by_symmetry(spec, n):
    src, dst = topologies(spec).edges(n, 0, 0)
    rate = optimal_rates(n, src, dst)
    uniform = torch.full_like(rate, 2 / len(src))
    # lambda_2 is flat around its maximum: the solver's 1e-8 leaves the rates within about 1e-5.
    assert torch.allclose(rate, uniform, atol=5e-5)
    assert chis(n, src, dst, rate)[0] == pytest.approx(chis(n, src, dst, uniform)[0], rel=1e-6)


def test_optimal_rates_on_the_barbell():
    """DADAO: the rate sqrt(2 chi1 chi2) of the 16-node barbell falls by at least 2.5."""
    src, dst = topologies("barbell").edges(16, 0, 0)
    uniform = torch.full((len(src),), 2 / len(src), dtype=torch.float64)
    best = optimal_rates(16, src, dst)
    assert float(best.sum()) == pytest.approx(2, abs=1e-9)
    slow, fast = (math.sqrt(2 * math.prod(chis(16, src, dst, r))) for r in (uniform, best))
    assert slow == pytest.approx(126.15, abs=0.01) and fast == pytest.approx(36.95, abs=0.01)
    assert slow / fast >= 2.5


def test_optimal_rates_refuse():
    src, dst = topologies("components").edges(8, 0, 0)
    with pytest.raises(BadInput, match="connected"):
        optimal_rates(8, src, dst)
    with pytest.raises(BadInput, match="at most"):
        optimal_rates(100, *topologies("ring").edges(100, 0, 0))


def test_chis_closed_forms():
    for n in (4, 9):
        one, two = chis(n, *topologies("complete").edges(n, 0, 0))
        assert one == pytest.approx(1 / n) and two == pytest.approx(1 / n)  # resistance 2/n
        one, two = chis(n, *topologies("ring").edges(n, 0, 0))
        assert one == pytest.approx(1 / (2 - 2 * math.cos(2 * math.pi / n)))
        assert two == pytest.approx((n - 1) / n / 2)
    assert chis(8, *topologies("components").edges(8, 0, 0)) == (math.inf, math.inf)


@pytest.mark.parametrize("spec", ["ring", "path", "torus", "barbell", "random-regular(degree=3)", "star"])
def test_facts_equal_networkx(spec):
    n = 16
    found = facts(make_graph(topologies(spec), weightings("metropolis"), n, 1, 0))
    src, dst = topologies(spec).edges(n, 1, 0)
    g = networkx.Graph(list(zip(src.tolist(), dst.tolist(), strict=True)))
    assert found["diameter"] == networkx.diameter(g)
    laplacian = torch.tensor(networkx.laplacian_matrix(g).toarray(), dtype=torch.float64)
    second = float(torch.linalg.eigvalsh(laplacian)[1])
    assert found["algebraic_connectivity"] == pytest.approx(second)
    assert found["chi1"] == pytest.approx(1 / second)
    resistance = max(networkx.resistance_distance(g, a, b) for a, b in g.edges)
    assert found["chi2"] == pytest.approx(resistance / 2)
    assert found["degree_max"] == max(dict(g.degree).values()) and found["connected"]


@pytest.mark.parametrize("spec", ["ring", "random-regular", "exponential", "barabasi-albert"])
def test_sparse_eigenvalues_equal_dense(spec):
    g = make_graph(topologies(spec), weightings("metropolis"), 600, 0, 0)
    values = torch.linalg.eigvals(g.matrix()).abs().sort().values
    found = facts(g)
    assert found["lambda2"] == pytest.approx(float(values[-2]), abs=1e-9)
    src, dst = both(600, g.src, g.dst)
    laplacian = torch.zeros(600, 600, dtype=torch.float64)
    laplacian[dst, src] = -1.0
    laplacian -= torch.diag(laplacian.sum(1))
    second = float(torch.linalg.eigvalsh(laplacian)[1])
    assert found["algebraic_connectivity"] == pytest.approx(second, rel=1e-6)


def test_facts_of_disconnected_and_single():
    found = facts(make_graph(topologies("components"), weightings("metropolis"), 12, 0, 0))
    assert found["gap"] == pytest.approx(0) and found["components"] == 2
    assert found["diameter"] is None and found["chi1"] is None and not found["connected"]
    alone = facts(make_graph(topologies("ring"), weightings("metropolis"), 1, 0, 0))
    assert alone["connected"] and alone["diameter"] == 0 and alone["lambda2"] == 0
