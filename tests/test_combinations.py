"""Any rule x attack x codec x graph x method combines: a covering array of all pairs runs."""

from __future__ import annotations

import itertools
import math

import pytest

from shoal.experiment import run

FACTORS = {
    "rule": [
        "mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "centered-clip",
        "norm-clip",
    ],
    "attack": ["sign-flip", "noise(sigma=1)", "alie", "ipm", "label-flip", "backdoor"],
    "codec": [
        "", "bf16", "topk(fraction=0.1)", "int8", "sign", "randk(fraction=0.2)",
        "gaussian(clip=1,sigma=0.01)",
    ],
    "graph": [
        "complete", "ring", "torus", "exponential", "erdos-renyi(p=0.5)", "random-regular(degree=4)",
        "one-peer-exponential",
    ],
    "method": ["dsgd", "fedavg", "dfedsam", "single-merge"],
}  # fmt: skip


Pair = tuple[int, str, int, str]


def _gain(row: list[str | None], i: int, value: str, left: set[Pair]) -> int:
    """How many uncovered pairs ``value`` in column ``i`` would cover."""
    others = [(j, v) for j, v in enumerate(row) if v is not None]
    return sum(((i, value, j, v) if i < j else (j, v, i, value)) in left for j, v in others)


def covering(factors: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """Rows in which every pair of values of every two factors occurs (greedy)."""
    names = list(factors)
    left = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in factors[names[a]]
        for y in factors[names[b]]
    }
    rows: list[tuple[str, ...]] = []
    while left:
        a, x, b, y = min(left)
        row: list[str | None] = [None] * len(names)
        row[a], row[b] = x, y
        for i, name in enumerate(names):
            if row[i] is None:
                row[i] = max(factors[name], key=lambda v, i=i, row=row: _gain(row, i, v, left))
        done = tuple(str(v) for v in row)
        rows.append(done)
        left -= {(a, done[a], b, done[b]) for a, b in itertools.combinations(range(len(names)), 2)}
    return rows


ROWS = covering(FACTORS)


def test_the_array_covers_all_pairs():
    pairs = {(a, r[a], b, r[b]) for r in ROWS for a, b in itertools.combinations(range(len(FACTORS)), 2)}
    sizes = [len(v) for v in FACTORS.values()]
    assert len(pairs) == sum(p * q for p, q in itertools.combinations(sizes, 2))
    assert len(ROWS) < 0.05 * math.prod(sizes)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_combination_runs(row):
    rule, attack, codec, graph, method = row
    fields = {"epochs": 1} if method == "fedavg" else {"local_steps": 1}
    report = run(
        method,
        task={
            "name": "supervised",
            "data": "digits",
            "model": {"name": "mlp", "hidden": [8]},
            "limit": 200,
        },
        network={
            "graph": graph,
            "clock": "rounds",
            "codec": codec,
            "rule": rule,
            "attack": attack,
            "hostile": 0.2,
        },
        peers=10,
        rounds=2,
        every=2,
        **fields,
    )
    assert report.status == "done" and math.isfinite(report.metrics["accuracy"])
    assert report.bytes_sent > 0
