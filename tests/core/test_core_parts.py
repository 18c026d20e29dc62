"""Parts, registries, trees, graphs and inboxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from shoal.core import BadInput, Graph, Inbox, MissingExtra, Part, Registry, literal, need, tree
from shoal.core.part import split_list


class Shape(Part):
    pass


shapes: Registry[Shape] = Registry("shape", "shoal.core", Shape)


@shapes.register("disc", "circle")
@dataclass(frozen=True)
class Disc(Shape):
    radius: Annotated[float, Meta(gt=0)] = 1.0
    kind: Literal["open", "closed"] = "open"
    sizes: tuple[int, ...] = ()
    inner: Shape | None = None


@shapes.register("pair")
@dataclass(frozen=True)
class Pair(Shape):
    left: Shape = shapes.field("disc")
    all: tuple[Shape, ...] = shapes.fields(("disc", "disc(radius=2)"))


def test_three_ways_to_write_a_part():
    assert shapes("disc(radius=2, kind=closed)") == shapes({"name": "disc", "radius": 2, "kind": "closed"})
    assert shapes("circle(sizes=[1,2])") == Disc(sizes=(1, 2))
    assert split_list("a, b(c=[1, [2, 3]]), d") == ["a", "b(c=[1, [2, 3]])", "d"]
    assert shapes(Disc()) == Disc() and Disc(radius=3).radius == 3.0
    assert Pair().all[1] == Disc(radius=2.0)
    assert shapes.many("disc+disc(radius=3)") == (Disc(), Disc(radius=3.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Disc(radius=-1), "radius = -1"),
        (lambda: Disc(radius="big"), "radius = 'big'"),
        (lambda: Disc(kind="ajar"), "kind = 'ajar'"),
        (lambda: shapes("disk"), "did you mean disc"),
        (lambda: shapes("disc(raduis=1)"), "did you mean radius"),
        (lambda: shapes("disc(radius)"), "field=value"),
        (lambda: Pair(left="disc(radius=0)"), "left.disc.radius = 0"),
        (lambda: Disc().replace(width=1), "no such field"),
        (lambda: shapes(3), "a shape, its name"),
    ],
)
def test_bad_values_are_one_line(make, said):
    with pytest.raises(BadInput) as caught:
        make()
    assert said in str(caught.value) and "\n" not in str(caught.value) and caught.value.status == 2


def test_spec_makes_the_part_again():
    part = Pair(left=Disc(radius=4.0, sizes=(3,)))
    assert shapes(part.spec()) == part


def test_literals_and_missing_extras():
    assert literal("0.1") == 0.1 and literal("[1, 2]") == [1, 2] and literal("krum") == "krum"
    assert literal("true") is True
    with pytest.raises(MissingExtra, match=r"pip install 'shoal\[p2p\]'"):
        need("no_such_library", "p2p")


@dataclass(frozen=True)
class Inner:
    w: torch.Tensor
    words: list


@dataclass(frozen=True)
class State:
    x: torch.Tensor
    inner: Inner
    more: dict
    step: int = 0


def state(n=4):
    return State(
        torch.arange(n * 3.0).reshape(n, 3),
        Inner(torch.arange(n), [f"p{i}" for i in range(n)]),
        {"a": torch.ones(n, 2, dtype=torch.float64)},
        7,
    )


def test_trees_slice_join_and_choose():
    s = state()
    parts = [tree.take(s, [0]), tree.take(s, slice(1, 3)), tree.take(s, torch.tensor([3]))]
    again = tree.concat(parts)
    assert torch.equal(again.x, s.x) and again.inner.words == s.inner.words and again.step == 7
    other = tree.map_leaves(lambda v: v * 0 if isinstance(v, torch.Tensor) else v, s)
    mask = torch.tensor([True, False, True, False])
    mixed = tree.where(mask, s, other)
    assert torch.equal(mixed.x[mask], s.x[mask]) and float(mixed.x[~mask].abs().sum()) == 0


def test_trees_save_whole_or_not_at_all(tmp_path):
    s, path = state(), tmp_path / "s.safetensors"
    tree.save(s, path)
    again = tree.load(s, tree.read(path))
    assert torch.equal(again.x, s.x) and again.inner.words == s.inner.words and again.step == 7
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="not readable"):
        tree.read(path)
    tree.save(Inner(s.inner.w, []), path)
    with pytest.raises(BadInput, match="another configuration"):
        tree.load(s, tree.read(path))
    with pytest.raises(TypeError, match="use tensors or lists"):
        tree.save({"f": print}, path)


def test_a_graph_sorts_its_edges_and_keeps_its_rows_summing_to_one():
    src, dst = torch.tensor([2, 0, 1, 0]), torch.tensor([0, 1, 0, 2])
    g = Graph.of(
        3, src, dst, torch.full((4,), 0.25, dtype=torch.float64), torch.tensor([0.5, 0.75, 0.75]).double()
    )
    assert g.dst.tolist() == [0, 0, 1, 2] and g.src.tolist() == [1, 2, 0, 0]
    cut = g.keep(torch.tensor([True, False, True, True]))
    assert torch.allclose(cut.matrix().sum(1), torch.ones(3).double()) and cut.edges == 3
    edge, mask = g.neighbours()
    assert mask.tolist() == [[True, True], [True, False], [True, False]] and edge[0].tolist() == [0, 1]


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 1000))
def test_inbox_combines_like_a_loop(peers, width, seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 3, dtype=torch.float64, generator=g)
    index = torch.randint(0, 6, (peers, width), generator=g)
    mask = torch.rand(peers, width, generator=g) < 0.7
    weight = torch.rand(peers, width, dtype=torch.float64, generator=g)
    own = torch.randn(peers, 3, dtype=torch.float64, generator=g)
    inbox = Inbox(rows, index, index, mask, weight, own, torch.full((peers,), 0.5, dtype=torch.float64))
    expected = 0.5 * own
    for p in range(peers):
        for k in range(width):
            if mask[p, k]:
                expected[p] += weight[p, k] * rows[index[p, k]]
    assert torch.allclose(inbox.mean(), expected, atol=1e-12)
    assert inbox.with_own().mask.shape == (peers, width + 1)
    assert torch.allclose(inbox.with_own().combine(inbox.with_own().weight), expected, atol=1e-12)
