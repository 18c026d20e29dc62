"""The pages of one run and of several, and the plots on them."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from report_fakes import CLASSES, bandit_report, fake_report

from shoal.core import BadInput, Report
from shoal.report.compare import compare_html, compare_page, grid_of
from shoal.report.graph_plot import MOST, draw_graph
from shoal.report.metrics import last
from shoal.report.page import page
from shoal.report.plots import curves, disagreement, holdings, peer_histogram, per_class, small_curves
from shoal.report.units import figure


class Reader(html.parser.HTMLParser):
    """Collects the tags that are open, the attributes and the scripts of a page."""

    VOID = {"meta", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("id") or "main"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text += data


def read_page(text: str) -> tuple[Reader, dict[str, Any]]:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    figures = json.loads(reader.scripts["figures"])
    for figure_ in figures.values():
        go.Figure(figure_)  # refuses unknown properties and values
    return reader, figures


# Pages.


def test_a_page_is_one_file_that_needs_no_network() -> None:
    reader, figures = read_page(page(fake_report()))
    assert not {"src", "href"} & {name for name, _ in reader.attributes}
    script = gzip.decompress(base64.b64decode(reader.scripts["plotly"])).decode()
    assert "Plotly" in script and len(script) > 1_000_000
    shown = {value for name, value in reader.attributes if name == "data-figure"}
    assert shown == figures.keys()
    expected = {"progress", "graph", "holdings", "spread", "classes", "disagreement", "metric-0"}
    assert shown == expected
    assert "Responders are SIMULATED & <labelled>." in reader.text
    assert "0.9232" in reader.text and "2.76 MB" in reader.text


def test_a_page_without_models_or_graph_shows_what_there_is() -> None:
    _, figures = read_page(page(bandit_report()))
    assert figures.keys() == {"progress"}
    bare = Report(system="x", config={}, status="stopped")
    text = page(bare)
    assert "stopped before its end" in text and "plotly" not in text


def test_user_text_cannot_end_the_script_or_add_markup() -> None:
    report = fake_report()
    report.notes = ["</script><script>alert(1)</script>"]
    report.system = "</script><b>x"
    report.final["class_names"] = ["</script>"] * CLASSES
    reader, _ = read_page(page(report))
    assert set(reader.scripts) == {"figures", "plotly", "main"}
    assert "alert(1)" in reader.text


def test_curves_follow_the_rows() -> None:
    report = fake_report()
    drawn = curves([("dsgd", report)], "accuracy")
    named = {(t["name"], t["xaxis"]): t for t in drawn["data"]}
    assert named["Mean of the peers", "x"]["y"] == [r["accuracy"] for r in report.rows]
    assert named["Worst decile", "x2"]["x"] == [r["bytes"] for r in report.rows]
    assert named["Merged model", "x3"]["x"] == [r["time"] for r in report.rows]
    several = curves([("a", report), ("b", report)], "accuracy", log_bytes=True)
    assert len(several["data"]) == 6 and min(several["data"][1]["x"]) >= 0
    assert min(x for t in several["data"] if t["xaxis"] == "x2" for x in t["x"]) > 0
    long = Report("x", {}, rows=[{"tick": t, "bytes": t, "loss": 1.0} for t in range(9001)])
    xs = small_curves([("x", long)], "loss")["data"][0]["x"]
    assert len(xs) <= 2001 and xs[0] == 0 and xs[-1] == 9000


def test_disagreement_is_logarithmic_and_skips_exact_zeros() -> None:
    drawn = disagreement([("dsgd", fake_report())])
    assert drawn is not None
    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert drawn["data"][0]["x"][0] == 5 and min(drawn["data"][0]["y"]) > 0
    assert disagreement([("x", bandit_report())]) is None


def test_runs_keep_their_colours_where_others_lack_a_metric() -> None:
    reports = [("a", fake_report()), ("b", bandit_report()), ("c", fake_report())]
    drawn = disagreement(reports)
    several = curves(reports, "accuracy")
    assert drawn is not None
    colours = {t["name"]: t["line"]["color"] for t in several["data"]}
    assert {t["name"]: t["line"]["color"] for t in drawn["data"]} == {k: colours[k] for k in ("a", "c")}


def test_a_graph_that_no_message_used_is_not_drawn() -> None:
    report = fake_report(n=16)
    assert "over the graph random-regular" in page(report)
    server = torch.full((16,), 16)
    report.links = (torch.arange(16), server, torch.ones(16, dtype=torch.int64))
    assert draw_graph(report) is None
    assert "through a server" in page(report)
    report.links = (torch.tensor([0, 3]), torch.tensor([16, 11]), torch.tensor([5, 5]))
    drawn = draw_graph(report)
    assert drawn is not None and "later rounds had other links" in drawn[1]


def test_the_spread_counts_every_peer_once() -> None:
    drawn = peer_histogram(fake_report(n=32, hostile=3))
    assert drawn is not None
    assert [(t["name"], sum(t["y"])) for t in drawn["data"]] == [("Honest", 29), ("Hostile", 3)]
    even = fake_report(n=8, hostile=0)
    even.peers["accuracy"] = torch.full((8,), 0.5, dtype=torch.float64)
    even.peers["accuracy"][0] = math.nan
    lone = peer_histogram(even)
    assert lone is not None and [y for y in lone["data"][0]["y"] if y] == [7]


def test_class_accuracy_is_that_of_the_honest_peers() -> None:
    report = fake_report(n=4, hostile=0, shape="ring")
    report.hostile = torch.tensor([False, False, False, True])
    report.final["per_class"] = [[0.5, 1.0], [0.7, 1.0], [0.9, 1.0], [0.0, 0.0]]
    report.final["class_names"] = ["cat", "dog"]
    drawn = per_class(report)
    assert drawn is not None
    assert drawn["data"][0]["y"] == pytest.approx([0.7, 1.0])
    assert drawn["data"][0]["error_y"]["array"] == pytest.approx([0.16, 0.0])
    assert drawn["data"][0]["x"] == ["cat", "dog"]
    report.final["per_class"] = [0.25, 0.5]
    flat = per_class(report)
    assert flat is not None and flat["data"][0]["y"] == [0.25, 0.5]
    held = holdings(fake_report(n=200))
    assert held is not None and len(held["data"][0]["z"]) == 100


def test_the_graph_is_drawn_whole_when_small_and_sampled_when_large() -> None:
    report = fake_report(n=12, hostile=2, shape="ring")
    drawn = draw_graph(report)
    assert drawn is not None
    edges, honest, hostile = drawn[0]["data"]
    assert drawn[1] == ""
    assert len(edges["x"]) == 3 * 12
    assert (len(honest["x"]), len(hostile["x"])) == (10, 2)
    # Neighbours on a ring lie next to each other on the circle.
    gaps = [
        math.dist((edges["x"][i], edges["y"][i]), (edges["x"][i + 1], edges["y"][i + 1]))
        for i in range(0, 36, 3)
    ]
    assert max(gaps) == pytest.approx(2 * math.sin(math.pi / 12), abs=1e-3)
    assert draw_graph(report) == drawn
    large = draw_graph(fake_report(n=1000, rounds=5))
    assert large is not None
    assert f"{MOST} of 1,000 peers" in large[1]
    assert sum(len(t["x"]) for t in large[0]["data"][1:]) == MOST
    assert draw_graph(bandit_report()) is None


# Comparisons.


def test_a_comparison_shows_all_runs_and_marks_the_best(tmp_path: Path) -> None:
    reports = [
        ("local", fake_report("local", top=0.5)),
        ("D-SGD", fake_report("dsgd", top=0.8)),
        ("FedAvg", fake_report("fedavg", top=0.9, shape="ring", n=16)),
    ]
    path = compare_page(reports, tmp_path / "new", title="Which is best?")
    assert [p.name for p in path.parent.iterdir()] == ["compare.html"]
    text = path.read_text(encoding="utf-8")
    _, figures = read_page(text)
    assert figures.keys() == {
        "progress", "final", "disagreement", "classes", "graph-0", "graph-1", "graph-2",
    }  # fmt: skip
    assert figures["final"]["data"][0]["y"] == ["local", "D-SGD", "FedAvg"]
    assert len(figures["classes"]["data"][0]["z"]) == 3
    assert text.count("<option") == 3
    best = re.findall(r'<td class="n best">([^<]*)', text)
    fedavg = last(reports[2][1], "accuracy")
    assert best[0] == figure(fedavg)
    assert text.count("All runs: Responders are SIMULATED") == 1


def test_two_runs_of_one_name_or_none_are_refused() -> None:
    for reports in ([], [("a", fake_report()), ("a", fake_report())]):
        with pytest.raises(BadInput, match="its own name"):
            compare_html(reports, title="x")


def test_crossed_factors_make_a_grid() -> None:
    names = [f"{rule} | {attack}" for rule in ("mean", "krum") for attack in ("none", "alie", "ipm")]
    reports = [(name, fake_report(top=0.4 + 0.1 * i)) for i, name in enumerate(names)]
    assert grid_of(names) == (["mean", "krum"], ["none", "alie", "ipm"])
    assert grid_of(["mean", "krum"]) is None and grid_of(["a | x", "a | y"]) is None
    _, figures = read_page(compare_html(reports, title="x", factors=("Rule", "Attack")))
    assert figures["grid"]["data"][0]["z"][1][2] == last(reports[5][1], "accuracy")
    assert figures["grid"]["layout"]["yaxis"]["title"]["text"] == "Rule"
    assert figures["grid"]["data"][0]["x"] == ["none", "alie", "ipm"]
