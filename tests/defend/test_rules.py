"""Robust rules against slow references written from the papers' formulas, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core import BadInput, Inbox, rules
from shoal.defend.centered_clip import CenteredClip
from shoal.defend.geometric_median import GeometricMedian
from shoal.defend.krum import Krum
from shoal.defend.mean import Mean
from shoal.defend.median import Median
from shoal.defend.multi_krum import MultiKrum
from shoal.defend.norm_clip import NormClip
from shoal.defend.trimmed_mean import TrimmedMean

ROBUST = [
    "median",
    "trimmed-mean(f=1)",
    "trimmed-mean(f=0.3)",
    "krum(f=1)",
    "multi-krum(f=1)",
    "multi-krum(f=0.2, m=2)",
    "geometric-median(iterations=20)",
    "rfa(iterations=3)",
    "centered-clip(tau=0.7)",
    "centered-clip(tau=2, iterations=3)",
    "norm-clip(tau=0.5)",
]
EVERY = ["mean", *ROBUST]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def server(messages: Tensor, centre: Tensor | None = None) -> Inbox:
    """One receiver without a value of its own, all messages weighing alike."""
    n = len(messages)
    at = torch.arange(n)[None]
    return Inbox(
        messages, at, at, torch.ones_like(at, dtype=torch.bool),
        torch.full((1, n), 1 / n, dtype=messages.dtype), centre=centre,
    )  # fmt: skip


def ragged(seed: int, peers: int, degree: int, dim: int, dtype: torch.dtype = torch.float64) -> Inbox:
    """Peers that each heard a random part of ``degree`` random others, the last one nobody."""
    rows = normal(seed, peers, dim, dtype=dtype)
    index = torch.argsort(normal(seed + 1, peers, peers).fill_diagonal_(math.inf), 1)[:, :degree]
    index = index.sort(1).values
    mask = normal(seed + 2, peers, degree) > -0.5
    mask[-1] = False
    raw = torch.where(mask, normal(seed + 3, peers, degree).abs() + 0.1, 0.0)
    mine = normal(seed + 4, peers).abs() + 0.1
    total = raw.sum(1) + mine
    return Inbox(
        rows, torch.where(mask, index, 0), torch.where(mask, index, -1), mask,
        (raw / total[:, None]).to(dtype), rows + 0.1 * normal(seed + 5, peers, dim, dtype=dtype),
        (mine / total).to(dtype),
    )  # fmt: skip


# -- references: one receiver, lists of messages, loops ------------------------------------------------


def ref_median(u: list[Tensor]) -> Tensor:
    columns = []
    for d in range(len(u[0])):
        v = sorted(float(x[d]) for x in u)
        n = len(v)
        columns.append(v[n // 2] if n % 2 else (v[n // 2 - 1] + v[n // 2]) / 2)
    return torch.tensor(columns, dtype=torch.float64)


def ref_trimmed(u: list[Tensor], f: int) -> Tensor:
    columns = []
    for d in range(len(u[0])):
        v = sorted(float(x[d]) for x in u)[f : len(u) - f]
        columns.append(sum(v) / len(v))
    return torch.tensor(columns, dtype=torch.float64)


def ref_krum(u: list[Tensor], f: int, m: int) -> Tensor:
    scores = []
    for i in range(len(u)):
        apart = sorted(float(((u[i] - u[j]) ** 2).sum()) for j in range(len(u)) if j != i)
        scores.append(sum(apart[: len(u) - f - 2]))
    best = sorted(range(len(u)), key=lambda i: scores[i])[:m]
    return torch.stack([u[i] for i in best]).mean(0)


def ref_weiszfeld(u: list[Tensor], steps: int, nu: float) -> Tensor:
    z = torch.stack(u).mean(0)
    for _ in range(steps):
        b = [1 / max(nu, float((x - z).norm())) for x in u]
        z = sum((w * x for w, x in zip(b, u, strict=True)), torch.zeros_like(z)) / sum(b)
    return z


def ref_clip(u: list[Tensor], w: list[float], centre: Tensor, tau: float, steps: int) -> Tensor:
    v = centre
    for _ in range(steps):
        pull = torch.zeros_like(v)
        for x, share in zip(u, w, strict=True):
            length = float((x - v).norm())
            pull = pull + share * (x - v) * (min(1.0, tau / length) if length else 1.0)
        v = v + pull
    return v


def reference(spec: str, inbox: Inbox) -> Tensor:
    rule = rules(spec)
    out = []
    for i in range(inbox.peers):
        slots = inbox.mask[i].nonzero()[:, 0].tolist()
        u = [inbox.rows[inbox.index[i, k]].double() for k in slots]
        w = [float(inbox.weight[i, k]) for k in slots]
        received, own = len(u), None
        if inbox.own is not None and inbox.own_weight is not None:
            own = inbox.own[i].double()
            u, w = [own, *u], [float(inbox.own_weight[i]), *w]
        if inbox.centre is not None:
            centre = inbox.centre[i].double()
        else:
            centre = torch.zeros(inbox.dim, dtype=torch.float64) if own is None else own
        share = getattr(rule, "f", 0)
        f = int(share) if share >= 1 else math.ceil(share * received - 1e-9)
        n = len(u)
        few = own if own is not None else (sum(u, torch.zeros(inbox.dim)) / n if n else centre)
        if isinstance(rule, Mean):
            value = sum((a * x for a, x in zip(w, u, strict=True)), torch.zeros(inbox.dim).double())
        elif isinstance(rule, Median):
            value = ref_median(u) if n else few
        elif isinstance(rule, TrimmedMean):
            value = ref_trimmed(u, f) if n >= 2 * f + 1 else few
        elif isinstance(rule, MultiKrum):
            value = ref_krum(u, f, rule.m or n - f) if n >= 2 * f + 3 else few
        elif isinstance(rule, Krum):
            value = ref_krum(u, f, 1) if n >= 2 * f + 3 else few
        elif isinstance(rule, GeometricMedian):
            value = ref_weiszfeld(u, rule.iterations, rule.nu) if n else few
        elif isinstance(rule, NormClip):
            value = ref_clip(u, w, centre, rule.tau, 1)
        else:
            assert isinstance(rule, CenteredClip)
            value = ref_clip(u, w, centre, rule.tau, rule.iterations)
        out.append(value)
    return torch.stack(out)


# -- agreement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", EVERY)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    peers=st.integers(2, 12),
    dim=st.integers(1, 7),
    wide=st.booleans(),
    single=st.booleans(),
)
def test_equals_its_formula_on_ragged_neighbourhoods(spec, seed, peers, dim, wide, single):
    # All neighbours: one Gram matrix for all receivers; few: one for each.
    degree = peers - 1 if wide else min(peers - 1, 3)
    inbox = ragged(seed, peers, degree, dim, torch.float32 if single else torch.float64)
    got = rules(spec)(inbox)
    assert got.dtype == inbox.rows.dtype
    tolerance = 2e-5 if single else 1e-9
    torch.testing.assert_close(got.double(), reference(spec, inbox), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("spec", EVERY)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 14), dim=st.integers(1, 6), based=st.booleans())
def test_equals_its_formula_at_a_server(spec, seed, n, dim, based):
    inbox = server(normal(seed, n, dim), normal(seed + 1, 1, dim) if based else None)
    torch.testing.assert_close(rules(spec)(inbox), reference(spec, inbox), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("spec", EVERY)
def test_chunks_of_columns_change_nothing(spec, monkeypatch):
    inbox = ragged(3, 9, 8, 50)
    whole = rules(spec)(inbox)
    monkeypatch.setattr("shoal.defend.gram.BUDGET", 500)
    assert len(list(inbox.columns(500))) > 5
    torch.testing.assert_close(rules(spec)(inbox), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("spec", EVERY)
def test_one_receiver_at_a_time_equals_the_batch(spec):
    inbox = ragged(5, 10, 9, 20)
    batch = rules(spec)(inbox)
    for i in range(10):
        one = Inbox(
            inbox.rows, inbox.index[i : i + 1], inbox.sender[i : i + 1], inbox.mask[i : i + 1],
            inbox.weight[i : i + 1], inbox.own[i : i + 1], inbox.own_weight[i : i + 1],
        )  # fmt: skip
        torch.testing.assert_close(rules(spec)(one)[0], batch[i], atol=1e-12, rtol=1e-12)


# -- invariants ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", EVERY)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(5, 12))
def test_permutation_invariant(spec, seed, n):
    messages = normal(seed, n, 5)
    order = torch.argsort(normal(seed + 1, n))
    rule = rules(spec)
    torch.testing.assert_close(rule(server(messages)), rule(server(messages[order])), atol=1e-9, rtol=0)


@pytest.mark.parametrize("spec", EVERY)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), far=st.sampled_from([1.0, 100.0, -1e4]))
def test_translation_equivariant(spec, seed, far):
    """Those around a centre move with messages and centre together."""
    messages, centre = normal(seed, 9, 5), normal(seed + 1, 1, 5)
    shift = far * normal(seed + 2, 1, 5)
    rule = rules(spec)
    moved = rule(server(messages + shift, centre + shift))
    torch.testing.assert_close(moved, rule(server(messages, centre)) + shift, atol=1e-9, rtol=1e-10)


@pytest.mark.parametrize("spec", ["centered-clip", "norm-clip"])
def test_clipping_around_a_fixed_centre_is_not_translation_equivariant(spec):
    messages = normal(0, 9, 5)
    moved = rules(spec)(server(messages + 10))
    assert float((moved - rules(spec)(server(messages)) - 10).abs().max()) > 1


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_consensus_is_a_fixed_point(spec, dtype):
    value = normal(1, 1, 6, dtype=dtype)
    rows = value.repeat(7, 1)
    inbox = ragged(2, 7, 6, 6, dtype)
    inbox = Inbox(rows, inbox.index, inbox.sender, inbox.mask, inbox.weight, rows, inbox.own_weight)
    tolerance = 5e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(rules(spec)(inbox), rows, atol=tolerance, rtol=tolerance)
    if spec.startswith(("median", "trimmed", "krum")):
        assert torch.equal(rules(spec)(inbox), rows)


@pytest.mark.parametrize("degree", [3, 9])
@pytest.mark.parametrize("own", [True, False])
def test_krum_tells_messages_apart_next_to_consensus(degree, own):
    """Differences of 1e-7 in messages of length 1e3: raw float64 products would lose them (1e-10)."""
    far, tiny = 1e3 * normal(0, 1, 40), 1e-7 * normal(1, 10, 40)
    inbox = ragged(4, 10, degree, 40)
    mask = torch.ones_like(inbox.mask)
    index = torch.argsort(normal(5, 10, 10).fill_diagonal_(math.inf), 1)[:, :degree].sort(1).values
    rows = far + tiny
    exact = rows - rows[:1]  # exact in float64: the values lie within a factor of two
    some = {"own": rows, "own_weight": inbox.own_weight} if own else {}
    near = {"own": exact, "own_weight": inbox.own_weight} if own else {}
    got = Krum(f=0)(Inbox(rows, index, index, mask, inbox.weight, **some))
    expected = reference("krum(f=0)", Inbox(exact, index, index, mask, inbox.weight, **near))
    torch.testing.assert_close(got - rows[:1], expected, atol=0, rtol=0)


@pytest.mark.parametrize("spec", [s for s in ROBUST if not s.startswith(("geometric", "rfa"))])
@pytest.mark.parametrize("size", [1e6, 1e30, 1e200, 1e300])
def test_one_huge_message_does_no_harm(spec, size):
    """Finite, but its square may overflow; it must neither win nor spoil the others' distances."""
    honest = normal(0, 8, 6)
    inbox = server(torch.cat([honest, torch.full((1, 6), size, dtype=torch.float64)]), honest[:1])
    out = rules(spec)(inbox)
    assert float((out - honest.mean(0)).norm()) < 3
    if spec == "krum(f=1)":
        # The nearest: 9 - 1 - 2 others; a message beyond what float64 can square is not counted at all.
        near = 6 if size < 1e154 else 5
        best = (torch.cdist(honest, honest).sort(1).values[:, : near + 1] ** 2).sum(1).argmin()
        assert torch.equal(out[0], honest[best])


@pytest.mark.parametrize("spec", ["krum(f=3)", "multi-krum(f=3)"])
def test_huge_messages_do_not_blur_the_distances_of_the_others(spec):
    """About the mean of all, the honest would be 1e29 away and their distances rounding noise."""
    honest, huge = normal(0, 8, 6), 1e30 * normal(1, 3, 6)
    rows = torch.cat([honest, huge])
    expected = ref_krum(list(rows), 3, 1 if spec.startswith("krum") else 8)
    torch.testing.assert_close(rules(spec)(server(rows))[0], expected, atol=1e-12, rtol=0)
    # The same on the complete graph, where all receivers read one Gram matrix.
    index = (torch.arange(11)[:, None] + torch.arange(1, 11)) % 11
    ones = torch.ones(11, 10)
    inbox = Inbox(
        rows, index, index, ones.bool(), ones.double() / 11, rows, torch.full((11,), 1 / 11).double()
    )
    torch.testing.assert_close(rules(spec)(inbox), expected.repeat(11, 1), atol=1e-12, rtol=0)


def test_geometric_median_returns_from_far():
    honest = normal(0, 8, 6)
    inbox = server(torch.cat([honest, torch.full((1, 6), 1e30, dtype=torch.float64)]))
    assert float(GeometricMedian(iterations=8)(inbox).norm()) > 1e15
    assert float(GeometricMedian(iterations=100)(inbox).norm()) < 3


def test_huge_messages_do_no_harm_in_float32():
    inbox = server(torch.cat([normal(0, 8, 6), torch.full((2, 6), 3e38).double()]).float())
    for spec in ("median", "trimmed-mean(f=2)", "krum(f=2)", "multi-krum(f=2)", "centered-clip"):
        assert float(rules(spec)(inbox).norm()) < 3, spec


# -- hand-computed cases -------------------------------------------------------------------------------


def test_median_and_trimmed_mean_by_hand():
    inbox = server(torch.tensor([[1.0, 5.0], [2.0, -7.0], [4.0, 0.0], [100.0, 1.0]]))
    assert Median()(inbox).tolist() == [[3.0, 0.5]]
    assert TrimmedMean(f=1)(inbox).tolist() == [[3.0, 0.5]]
    assert TrimmedMean(f=0)(inbox).tolist() == [[26.75, -0.25]]
    assert TrimmedMean(f=0.25)(inbox).tolist() == [[3.0, 0.5]]


def test_krum_by_hand():
    """n = 5, f = 1: the two nearest. Scores of 0, 1, 3, 4, 50: 1+9, 1+4, 1+4, 1+9, 46^2+47^2."""
    inbox = server(torch.tensor([[0.0], [1.0], [3.0], [4.0], [50.0]]))
    assert Krum(f=1)(inbox).tolist() == [[1.0]]
    assert MultiKrum(f=1, m=2)(inbox).tolist() == [[2.0]]
    assert MultiKrum(f=1)(inbox).tolist() == [[2.0]]
    assert math.isclose(float(MultiKrum(f=1, m=99)(inbox)), 11.6, rel_tol=1e-6)


def test_a_share_counts_what_was_received_not_the_own_value():
    """Two neighbours, a share of 0.4: one may be hostile (of three it would be two, too many)."""
    rows = torch.tensor([[0.0], [1.0], [100.0]])
    index, mask = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool)
    third = torch.full((1, 2), 1 / 3)
    inbox = Inbox(rows, index, index, mask, third, rows[:1], third[:, 0])
    assert TrimmedMean(f=0.4)(inbox).tolist() == [[1.0]]


def test_geometric_median_by_hand():
    """On a line it is the median; of an equilateral triangle the centre; an obtuse corner is itself."""
    line = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    assert abs(float(GeometricMedian(iterations=2000)(server(line))) - 1) < 1e-3
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    centre = GeometricMedian(iterations=5)(server(triangle + 3))
    torch.testing.assert_close(centre, triangle.mean(0, keepdim=True) + 3)
    # One step from the mean 11/3 of 0, 1, 10 with weights 3/11, 3/8, 3/19.
    first = (3 / 8 + 30 / 19) / (3 / 11 + 3 / 8 + 3 / 19)
    assert math.isclose(float(GeometricMedian(iterations=1)(server(line))), first, rel_tol=1e-12)


def test_centered_clip_by_hand():
    """From 0, tau 1: 0.5 stays, 4 becomes 1, (0, -3) becomes (0, -1)."""
    messages = torch.tensor([[0.5, 0.0], [4.0, 0.0], [0.0, -3.0]], dtype=torch.float64)
    out = CenteredClip(tau=1)(server(messages))
    torch.testing.assert_close(out, torch.tensor([[0.5, -1 / 3]], dtype=torch.float64))
    torch.testing.assert_close(out, NormClip(tau=1)(server(messages)), atol=0, rtol=0)


def test_centered_clip_without_a_bound_is_the_weighted_mean():
    inbox = ragged(7, 8, 5, 4)
    torch.testing.assert_close(CenteredClip(tau=math.inf)(inbox), inbox.mean(), atol=1e-13, rtol=0)
    assert rules("centered-clip(tau=inf)") == CenteredClip(tau=math.inf)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.floats(0.1, 5), size=st.floats(0, 1e6))
def test_one_message_moves_centered_clip_by_at_most_tau_over_n(seed, tau, size):
    messages = normal(seed, 10, 5)
    moved = messages.clone()
    moved[3] *= size
    gap = CenteredClip(tau=tau)(server(moved)) - CenteredClip(tau=tau)(server(messages))
    assert float(gap.norm()) <= 2 * tau / 10 + 1e-12  # from one end of the ball to the other
    absent = messages.clone()
    absent[3] = 0  # what says nothing new
    gap = CenteredClip(tau=tau)(server(moved)) - CenteredClip(tau=tau)(server(absent))
    assert float(gap.norm()) <= tau / 10 + 1e-12


def test_median_keeps_its_bias_where_clipping_follows_the_mean():
    """Samples +-1 without attackers (the paper's section 3): the median errs by 1, clipping by nothing."""
    signs = torch.tensor([1.0] * 13 + [-1.0] * 12, dtype=torch.float64)[:, None]
    inbox = server(signs, torch.zeros(1, 1, dtype=torch.float64))
    assert float(Median()(inbox)) == 1.0
    assert math.isclose(float(CenteredClip(tau=1)(inbox)), float(Mean()(inbox)), abs_tol=1e-15)


def test_clipped_differences_cancel_at_convergence():
    messages = torch.cat([normal(0, 9, 4), 1e3 + normal(1, 2, 4)])
    v = CenteredClip(tau=1, iterations=400)(server(messages))
    gap = messages - v
    clipped = gap * (1 / gap.norm(dim=1, keepdim=True)).clamp(max=1)
    assert float(clipped.sum(0).norm()) < 1e-6


# -- too few messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", EVERY)
def test_who_hears_nobody_keeps_its_value(spec):
    inbox = ragged(11, 6, 4, 3)
    torch.testing.assert_close(rules(spec)(inbox)[-1], inbox.own[-1] * (
        inbox.own_weight[-1] if spec == "mean" else 1
    ), atol=1e-14, rtol=0)  # fmt: skip


@pytest.mark.parametrize("spec", ROBUST)
@pytest.mark.parametrize("width", [0, 4])
def test_a_server_that_hears_nobody_keeps_its_centre(spec, width):
    empty = torch.zeros(1, width, dtype=torch.int64)
    inbox = Inbox(torch.zeros(4, 3), empty, empty - 1, empty.bool(), empty.float())
    assert rules(spec)(inbox).tolist() == [[0.0] * 3]
    centred = Inbox(
        torch.zeros(4, 3), empty, empty - 1, empty.bool(), empty.float(), centre=torch.ones(1, 3)
    )
    assert rules(spec)(centred).tolist() == [[1.0] * 3]


def test_krum_at_a_server_with_too_few_messages_takes_their_mean():
    messages = normal(0, 4, 3)
    torch.testing.assert_close(Krum(f=1)(server(messages)), messages.mean(0, keepdim=True))


def test_an_own_value_without_a_weight_votes_and_weighs_nothing():
    rows = torch.tensor([[1.0], [5.0], [9.0]])
    index = torch.tensor([[1, 2]])
    inbox = Inbox(rows, index, index, torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), 0.5), rows[:1])
    assert Median()(inbox).tolist() == [[5.0]]
    assert CenteredClip(tau=math.inf)(inbox).tolist() == [[7.0]]


@pytest.mark.parametrize("spec", EVERY)
def test_no_receivers(spec):
    empty = torch.zeros(0, 3, dtype=torch.int64)
    inbox = Inbox(
        torch.zeros(4, 5), empty, empty, empty.bool(), empty.float(), torch.zeros(0, 5), torch.zeros(0)
    )
    assert rules(spec)(inbox).shape == (0, 5)


@pytest.mark.parametrize(
    ("spec", "least"),
    [("krum(f=2)", 7), ("multi-krum(f=1)", 5), ("trimmed-mean(f=3)", 7), ("median", 1), ("krum(f=0)", 3),
     ("trimmed-mean(f=0.4)", 5), ("krum(f=0.2)", 5), ("centered-clip", 1), ("rfa", 1)],
)  # fmt: skip
def test_least_number_of_messages(spec, least):
    """The rule falls back to the mean just below it, and works from there on."""
    rule = rules(spec)
    assert rule.least() == least
    number = torch.arange(least + 1)
    assert rule.enough(number, number).tolist()[: least + 1] == [False] * least + [True]


@pytest.mark.parametrize(
    ("spec", "field"),
    [("krum(f=-1)", "krum.f"), ("krum(f=1.5)", "krum.f"), ("trimmed-mean(f=0.5)", "trimmed-mean.f"),
     ("krum(f=inf)", "krum.f"), ("krum(f=nan)", "krum.f"), ("multi-krum(m=0)", "multi-krum.m"),
     ("centered-clip(tau=0)", "centered-clip.tau"), ("centered-clip(tau=nan)", "centered-clip.tau"),
     ("centered-clip(iterations=0)", "centered-clip.iterations"), ("norm-clip(tau=-1)", "norm-clip.tau"),
     ("rfa(nu=0)", "rfa.nu"), ("median(f=1)", "median.f")],
)  # fmt: skip
def test_bad_values_are_named(spec, field):
    with pytest.raises(BadInput) as error:
        rules(spec)
    assert error.value.field == field


def test_rules_do_not_change_what_they_are_given():
    inbox = ragged(1, 6, 4, 5)
    before = [inbox.rows.clone(), inbox.own.clone(), inbox.weight.clone(), inbox.mask.clone()]
    for spec in EVERY:
        rules(spec)(inbox)
    for was, now in zip(before, [inbox.rows, inbox.own, inbox.weight, inbox.mask], strict=True):
        assert torch.equal(was, now)
