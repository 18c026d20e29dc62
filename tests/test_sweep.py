"""Sweeps: what a file asks for, bad input before anything runs, killed and resumed, the report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shoal.core import BadInput
from shoal.report.save import load
from shoal.sweep import sweep
from shoal.sweep.trials import read_sweep

BASE = """
method = "dsgd"
peers = 4
rounds = 4
every = 2
{top}
[task]
name = "supervised"
data = "digits"
model = {{name = "mlp", hidden = [8]}}
limit = 200
batch = 8
[network]
graph = "ring"
"""
SCRIPT = """
import sys
from pathlib import Path
from shoal.sweep import sweep

if __name__ == "__main__":
    sweep(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, address="none")
"""


def file(folder: Path, text: str = "", top: str = "") -> Path:
    path = folder / "s.toml"
    path.write_text(BASE.format(top=top) + text)
    return path


def names(folder: Path, text: str = "", top: str = "") -> list[str]:
    return [trial.name for trial in read_sweep(file(folder, text, top)).trials]


def test_a_table_is_a_product_and_seeds_cross_it(tmp_path):
    text = '[sweep]\nlr = [0.1, 0.2]\n"network.graph" = ["ring", "complete"]\n'
    assert names(tmp_path, text, "seeds = [3, 4]")[:3] == [
        "lr=0.1 | ring | seed=3",
        "lr=0.1 | ring | seed=4",
        "lr=0.1 | complete | seed=3",
    ]
    plans = [trial.plan() for trial in read_sweep(file(tmp_path, text, "seeds = [3, 4]")).trials]
    told = [(p.method.lr, p.network.graph.slug, p.seed) for p in plans]
    assert told == [(lr, g, s) for lr in (0.1, 0.2) for g in ("ring", "complete") for s in (3, 4)]


def test_several_tables_vary_fields_together(tmp_path):
    text = '[[sweep]]\nlr = 0.1\nnetwork.graph = "ring"\n[[sweep]]\nlr = 0.2\nnetwork.graph = "complete"\n'
    assert names(tmp_path, text) == ["lr=0.1 | ring", "lr=0.2 | complete"]


def test_parts_of_parts_and_whole_methods_can_vary(tmp_path):
    text = '[sweep]\n"network.rule" = ["trimmed-mean", "median"]\n"task.model.hidden" = [[4], [8, 8]]\n'
    plans = [trial.plan() for trial in read_sweep(file(tmp_path, text)).trials]
    assert [(p.network.rule.slug, list(p.task.model.hidden)) for p in plans] == [
        (r, h) for r in ("trimmed-mean", "median") for h in ([4], [8, 8])
    ]
    text = '[sweep]\nmethod = ["local", {name = "dsgd", lr = 0.3}]\n'
    assert names(tmp_path, text) == ["local", "dsgd(lr=0.3)"]


def test_equal_configurations_run_once_and_given_fields_win(tmp_path):
    path = file(tmp_path, "[sweep]\nlr = [0.1, 0.1, 0.2]\n")
    assert len(read_sweep(path).trials) == 2
    assert len(read_sweep(path, {"method": {"lr": 0.5}}).trials) == 1


BAD = {
    "no sweep": ("", "", "sweep"),
    "no choices": ("[sweep]\nlr = []\n", "", "lr"),
    "not a table": ("", "sweep = 3", "sweep"),
    "one value of several": ("[sweep]\nlr = [0.1, -1]\n", "", "lr = -1"),
    "unknown field": ("[sweep]\nlrr = [1]\n", "", "did you mean lr"),
    "unknown graph": ('[sweep]\n"network.graph" = ["ring", "rng"]\n', "", "did you mean ring"),
    "a rule that can never work": (
        '[sweep]\n"network.rule" = ["mean", "krum(f=3)"]\n',
        "",
        "needs at least",
    ),
    "data that are not there": (
        '[sweep]\n"task.data" = ["digits", "csv(path=\'no.csv\')"]\n',
        "",
        "no.csv",
    ),
    "negative seed": ("[sweep]\n", "seeds = [0, -1]", "seed = -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_anything_runs(name, tmp_path):
    text, top, said = BAD[name]
    with pytest.raises(BadInput) as error:
        sweep(file(tmp_path, text, top), tmp_path / "o", address="none", quiet=True)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("address", ["none", None])
def test_a_sweep_ends_in_a_page_and_tables_and_is_not_run_twice(address, tmp_path):
    if address is None:
        pytest.importorskip("ray")
    text = '[sweep]\n"network.graph" = ["ring", "complete"]\nlr = [0.1, 1e30]\n'
    path, out = file(tmp_path, text), tmp_path / "o"
    told = sweep(path, out, workers=2, address=address, quiet=True)
    assert len(told["rows"]) == 2 and told["missing"] == 2 and told["skipped"] == 0
    assert set(told["failed"]) == {"ring | lr=1e+30", "complete | lr=1e+30"}
    assert all("diverged" in why for why in told["failed"].values())
    assert "lr=0.1" in (out / "compare.html").read_text()
    table = pq.read_table(out / "sweep.parquet").to_pylist()
    assert table == told["rows"] == json.loads((out / "sweep.json").read_text())
    with (out / "sweep.csv").open() as lines:
        assert [row["network.graph"] for row in csv.DictReader(lines)] == ["ring", "complete"]
    for row in table:
        report = load(out / "runs" / row["digest"])
        assert row["accuracy"] == report.metrics["accuracy"] and row["bytes_sent"] == report.bytes_sent
        assert not (out / "runs" / row["digest"] / "checkpoint.safetensors").exists()
    # A longer file runs only what is new.
    longer = file(tmp_path, text.replace("1e30", "0.2"))
    again = sweep(longer, out, workers=2, address="none", quiet=True)
    assert again["skipped"] == 2 and len(again["rows"]) == 4 and not again["failed"]


def test_a_killed_sweep_goes_on_and_leaves_no_process_behind(tmp_path):
    path = file(tmp_path, "[sweep]\nlr = [0.1, 0.2, 0.3]\nrounds = [60]\nlocal_steps = [20]\n")
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    out = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, str(script), str(path), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 100
    while not list(out.glob("runs/*/report.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "finished before it could be killed"
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not (out / "sweep.json").exists()
    went_on = sweep(path, out, workers=1, address="none", quiet=True)
    whole = sweep(path, tmp_path / "whole", workers=1, address="none", quiet=True)
    assert went_on["skipped"] >= 1 and went_on["missing"] == 0
    assert [{**row, "wall_s": 0} for row in went_on["rows"]] == [
        {**row, "wall_s": 0} for row in whole["rows"]
    ]
