"""Partitions: nobody shares a row, every peer holds some, and each kind has the skew that it names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core import BadInput, Draws
from shoal.tasks.data.base import Dataset
from shoal.tasks.partition.base import Partition, apportion, describe, hold_out, partitions
from shoal.tasks.partition.dirichlet import log_dirichlet

Y = torch.arange(600) % 10
SPECS = [
    "iid", "iid(size=7)", "iid(skew_size=1.0)", "iid(size=9, skew_size=0.7)", "dirichlet(alpha=1.0)",
    "dirichlet(alpha=0.05, size=8)", "shards", "shards(per_peer=1)", "classes(k=4)", "classes(k=3, size=5)",
    "quantity", "quantity(sigma=1.5)", "feature", 'feature(kind="noise", over="shards")', "natural",
]  # fmt: skip
EVERYTHING = {s for s in SPECS if "size=" not in s.replace("skew_size=1.0", "")}


def counts(lists: list[Tensor], y: Tensor = Y) -> Tensor:
    return describe(Dataset(torch.zeros(len(y), 1), y, int(y.max()) + 1), lists)


@settings(max_examples=15)
@given(st.sampled_from(SPECS), st.integers(4, 40), st.integers(0, 1000))
def test_rows_are_never_shared_and_nobody_is_empty(spec: str, n: int, seed: int) -> None:
    groups = torch.arange(600) % 40
    lists = partitions(spec).assign(Y, groups, n, seed)
    rows = torch.cat(lists)
    assert len(lists) == n and min(len(v) for v in lists) >= 1
    assert len(rows.unique()) == len(rows)
    assert spec not in EVERYTHING or len(rows) == len(Y)
    assert all(bool((v.diff() > 0).all()) for v in lists)
    again = partitions(spec).assign(Y, groups, n, seed)
    assert all(torch.equal(a, b) for a, b in zip(lists, again, strict=True))


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "natural"])
def test_the_seed_matters(spec: str) -> None:
    one, two = (torch.cat(partitions(spec).assign(Y, None, 12, seed)) for seed in (0, 1))
    assert one.shape != two.shape or not torch.equal(one, two)


@pytest.mark.parametrize("spec", ["iid(size=13)", "dirichlet(alpha=0.1,size=13)", "classes(k=3,size=13)"])
def test_size_is_every_peers_size(spec: str) -> None:
    assert {len(v) for v in partitions(spec).assign(Y, None, 20, 3)} == {13}


def test_iid_sizes() -> None:
    assert sorted(len(v) for v in partitions("iid").assign(Y, None, 7, 0)) == [85, 85] + [86] * 5
    spread = [len(v) for v in partitions("iid(skew_size=1.0)").assign(Y, None, 30, 0)]
    assert sum(spread) == 600 and max(spread) > 3 * min(spread)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3),
    st.integers(0, 500),
)
def test_apportion_is_within_one_of_the_exact_share(weight: list[float], more: int) -> None:
    w = np.array(weight)
    total = len(w) + more
    count = apportion(w, total)
    assert count.sum() == total and count.min() >= 1
    assert np.abs(count - 1 - w / w.sum() * more).max() < 1 + 1e-9


# -- label skew ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_dirichlet_draws_have_the_right_moments(alpha: float) -> None:
    k = 5
    q = np.exp(log_dirichlet(Draws(0, "t", torch.arange(20_000)), alpha, k))
    assert np.allclose(q.sum(1), 1)
    assert np.allclose(q.mean(0), 1 / k, atol=0.012)
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    assert np.allclose(q.var(0), variance, rtol=0.08)


def test_dirichlet_draws_of_tiny_concentration_stay_finite() -> None:
    log_q = log_dirichlet(Draws(0, "t", torch.arange(1000)), 0.001, 10)
    assert np.isfinite(log_q).all() and np.allclose(np.exp(log_q).sum(1), 1)
    # The two largest differ by an exponential variable of rate (k - 1) alpha.
    assert (np.exp(log_q).max(1) > 0.999).mean() == pytest.approx(
        np.exp(-9 * 0.001 * np.log(1000)), abs=0.03
    )


@pytest.mark.parametrize("size", ["", ", size=30"])
def test_dirichlet_skews_more_as_alpha_falls(size: str) -> None:
    def skew(alpha: float) -> float:
        table = counts(partitions(f"dirichlet(alpha={alpha}{size})").assign(Y, None, 20, 0)).double()
        return float((table / table.sum(1, keepdim=True)).max(1).values.mean())

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(100.0) < 0.25


def test_dirichlet_with_size_uses_the_stock_up() -> None:
    assert torch.equal(
        counts(partitions("dirichlet(alpha=0.01, size=30)").assign(Y, None, 20, 0)).sum(0),
        torch.full((10,), 60),
    )


def test_dirichlet_keeps_min_size_and_skips_absent_labels() -> None:
    lists = partitions("dirichlet(alpha=0.3, min_size=10)").assign(Y * 2, None, 20, 0)
    assert min(len(v) for v in lists) >= 10 and sum(len(v) for v in lists) == 600


def test_shards_cut_the_sorted_rows() -> None:
    table = counts(partitions("shards(per_peer=2)").assign(Y, None, 30, 0))
    assert table.sum(1).tolist() == [20] * 30
    assert int((table > 0).sum(1).max()) <= 2
    values = torch.linspace(-1, 1, 50)
    for rows in partitions("shards(per_peer=1)").assign(values, None, 5, 0):
        assert len(rows) == 10 and rows.max() - rows.min() == 9


@settings(max_examples=30)
@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 99))
def test_classes_are_held_evenly(k: int, n: int, seed: int) -> None:
    part = partitions({"name": "classes", "k": k})
    if n * k < 10:
        with pytest.raises(BadInput, match="peers must hold 10 classes"):
            part.assign(Y, None, n, seed)
        return
    table = counts(part.assign(Y, None, n, seed))
    assert ((table > 0).sum(1) == k).all()
    holders = (table > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    for c in range(10):
        held = table[:, c][table[:, c] > 0]
        assert held.max() - held.min() <= 1


def test_natural_is_one_user_a_peer() -> None:
    groups = torch.tensor([7, 7, 3, 9, 3, 7, 9, 4])
    y = torch.zeros(8, dtype=torch.int64)
    assert [v.tolist() for v in partitions("natural").assign(y, groups, 4, 0)] == [
        [2, 4], [7], [0, 1, 5], [3, 6],
    ]  # fmt: skip
    merged = partitions("natural").assign(y, groups, 3, 0)
    assert [v.tolist() for v in merged] == [[2, 3, 4, 6], [7], [0, 1, 5]]
    dropped = partitions('natural(rest="drop")').assign(y, groups, 3, 0)
    assert [v.tolist() for v in dropped] == [[2, 4], [7], [0, 1, 5]]


@pytest.mark.parametrize(
    ("spec", "n", "said"),
    [
        ("iid", 601, "peers = 601: 1 to 600"),
        ("iid(size=7)", 100, "partition.size = 7: at most 6"),
        ("dirichlet(size=7)", 100, "partition.size = 7: at most 6"),
        ("dirichlet(min_size=7)", 100, "partition.min_size = 7: at most 6"),
        ("dirichlet(alpha=0.001)", 100, "or give size"),
        ("shards(per_peer=7)", 100, "partition.per_peer = 7: at most 6"),
        ("classes(k=11)", 20, "partition.k = 11: at most 10"),
        ("classes(k=1)", 4, "at least 3"),
        ("classes(k=2, size=200)", 10, "class 0 has 60 rows"),
        ("natural", 4, "group column"),
    ],
)
def test_what_cannot_be_dealt_out(spec: str, n: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        partitions(spec).assign(Y, None, n, 0)


def test_bad_fields_and_data() -> None:
    for spec in ["dirichlet(alpha=0)", "classes(k=0)", "quantity(sigma=1, beta=1)", "feature(groups=1)",
                 'feature(kind="mirror")', 'feature(kind="invert", strength=3)', "iid(size=0)",
                 ]:  # fmt: skip
        with pytest.raises(BadInput):
            partitions(spec)
    for spec in ["dirichlet", "classes"]:
        with pytest.raises(BadInput, match="regression"):
            partitions(spec).assign(torch.rand(20), None, 2, 0)
    with pytest.raises(BadInput, match="at most 3, the number of users"):
        partitions("natural").assign(Y, torch.arange(600) % 3, 4, 0)


def test_a_peer_left_without_rows_is_refused() -> None:
    class Greedy(Partition):
        slug = "greedy"

        def owner(self, y: Tensor, groups: Tensor | None, n: int, seed: int) -> Tensor:
            return torch.zeros(len(y), dtype=torch.int64)

    with pytest.raises(BadInput, match="1 of 3 holds none"):
        Greedy().assign(Y, None, 3, 0)


# -- held-out rows and the table -----------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0.01, 0.9), st.integers(0, 9))
def test_hold_out_takes_a_share_of_each_peer(sizes: list[int], share: float, seed: int) -> None:
    lists = list(torch.split(torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(1)), sizes))
    train, test = hold_out(lists, share, seed)
    for rows, a, b in zip(lists, train, test, strict=True):
        assert torch.equal(torch.cat([a, b]).sort().values, rows.sort().values)
        assert len(b) == max(0, min(max(1, round(len(rows) * share)), len(rows) - 1))
    again = hold_out(lists, share, seed)[1]
    assert all(torch.equal(a, b) for a, b in zip(test, again, strict=True))


def test_describe_counts() -> None:
    y = torch.tensor([0, 1, 2, 1, 1, 0])
    lists = [torch.tensor([0, 1, 3]), torch.tensor([2, 5])]
    assert counts(lists, y).tolist() == [[1, 2, 0], [1, 0, 1]]
    assert describe(Dataset(torch.zeros(6, 1), y.float(), 0), lists).tolist() == [[3], [2]]


# -- feature skew --------------------------------------------------------------------------------------


def picture(n: int) -> tuple[Tensor, list[Tensor]]:
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(n, 1, 1, 1)
    return x, [torch.tensor([i]) for i in range(n)]


@pytest.mark.parametrize("kind", ["rotate", "noise", "blur", "invert"])
def test_skew_rises_from_the_first_peer_to_the_last(kind: str) -> None:
    x, lists = picture(5)
    seen = partitions({"name": "feature", "kind": kind}).skew(x, lists, 0)
    far = (seen - x).flatten(1).norm(dim=1)
    assert far[0] < 1e-5 and far[4] > 0.5
    assert torch.equal(x, picture(5)[0])


def test_four_groups_of_quarter_turns() -> None:
    x, lists = picture(8)
    seen = partitions("feature(strength=3, groups=4)").skew(x, lists, 0)
    for i in range(8):
        torch.testing.assert_close(seen[i, 0], torch.rot90(x[i, 0], i % 4), atol=1e-4, rtol=0)


def test_invert_mirrors_half_of_the_peers() -> None:
    x, lists = picture(4)
    seen = partitions('feature(kind="invert")').skew(x, lists, 0)
    mirrored = x.min() + x.max() - x
    for i in range(4):
        torch.testing.assert_close(seen[i], (mirrored if i >= 2 else x)[i])


def test_blur_keeps_constants_and_smooths_a_point() -> None:
    part = partitions('feature(kind="blur", strength=1.0)')
    x = torch.zeros(2, 1, 17, 17)
    x[:, :, 8, 8] = 1
    lists = [torch.tensor([0]), torch.tensor([1])]
    seen = part.skew(x, lists, 0)[1, 0]
    near, centre = float(seen[8, 9]), float(seen[8, 8])
    assert near / centre == pytest.approx(np.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(part.skew(torch.ones(2, 1, 9, 7), lists, 0), torch.ones(2, 1, 9, 7))


def test_noise_has_the_stated_deviation_and_leaves_unheld_rows() -> None:
    x = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    seen = partitions('feature(kind="noise", strength=0.5)').skew(
        x, [torch.tensor([0]), torch.tensor([2])], 0
    )
    assert torch.equal(seen[:2], x[:2])
    assert float((seen[2] - x[2]).std()) == pytest.approx(0.5 * float(x.std()), rel=0.02)


def test_pictures_are_needed_for_turning() -> None:
    with pytest.raises(BadInput, match="is no image"):
        partitions("feature").skew(torch.zeros(4, 9), [torch.arange(4)], 0)
