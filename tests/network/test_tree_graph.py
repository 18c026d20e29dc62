from __future__ import annotations

import pytest
import torch

from shoal.core import BadInput
from shoal.network.graphs.base import components, undirected
from shoal.network.graphs.tree import Tree
from shoal.network.network import Network


def test_a_tree_is_a_tree() -> None:
    tree = Tree((2, 3))
    assert tree.levels == [1, 2, 6] and tree.starts == [0, 1, 3]
    assert [tree.below(level) for level in range(3)] == [6, 3, 1]
    src, dst = tree.edges(9, 0, 0)
    assert len(src) == 2 * 8 and undirected(9, src, dst) and components(9, src, dst)[0] == 1
    child, parent = tree.up(2)
    assert child.tolist() == [3, 4, 5, 6, 7, 8] and parent.tolist() == [1, 1, 1, 2, 2, 2]
    assert tree.up(1)[1].tolist() == [0, 0]


def test_a_root_alone() -> None:
    assert len(Tree(()).edges(1, 0, 0)[0]) == 0


def test_weights_on_it_are_doubly_stochastic() -> None:
    graph = Network(graph="tree(branching=[3, 2])").open(10, 0)  # type: ignore[arg-type]
    w = graph.matrix()
    torch.testing.assert_close(w.sum(0), torch.ones(10, dtype=w.dtype))
    torch.testing.assert_close(w, w.T)


def test_other_numbers_of_peers_are_refused() -> None:
    with pytest.raises(BadInput, match="9: as many as the tree"):
        Network(graph="tree(branching=[2, 3])").open(8, 0)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="branching"):
        Tree((2, 0))
