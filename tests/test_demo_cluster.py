"""The demo of the cluster, short: a process is killed, and the result is that of one process."""

from __future__ import annotations

import pytest

from shoal.demo_cluster import demo_cluster

pytest.importorskip("ray", reason="Ray is not installed: pip install 'shoal[cluster]'")
pytest.importorskip("mlxtend")


def test_a_killed_process_changes_nothing(tmp_path):
    told = demo_cluster(tmp_path, rounds=6, quiet=True)
    assert told["holds"] and told["bytes_equal"] and told["max_difference"] <= 1e-10
    cluster, local = told["rows"]
    assert cluster["bytes_sent"] == local["bytes_sent"] > 0
    assert cluster["metrics"] == pytest.approx(local["metrics"], abs=1e-9)
    assert "restarted from tick 0" in (tmp_path / "cluster" / "report.json").read_text()
    assert (tmp_path / "compare.html").stat().st_size > 0
