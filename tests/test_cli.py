"""The command line as others script it: outputs, exit statuses, one line for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shoal.cli import main
from shoal.experiment import run

SMALL = ["--peers", "4", "--rounds", "4", "--seed", "3", "--set", "local_steps=1"]


def shoal(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "shoal.cli", *args]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=env, timeout=240, check=False
    )


def test_run_json_is_the_last_line(tmp_path):
    done = shoal("run", "dsgd", *SMALL, "--out", str(tmp_path / "r"), "--json")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["system"] == "dsgd" and line["seed"] == 3 and line["peers"] == 4 and line["rounds"] == 4
    assert 0 <= line["metrics"]["accuracy"] <= 1 and line["bytes_sent"] > 0 and line["out"]
    for name in ("report.html", "report.json", "metrics.parquet", "model.safetensors", "config.toml"):
        assert (tmp_path / "r" / name).stat().st_size > 0
    again = shoal("report", str(tmp_path / "r"))
    assert again.returncode == 0, again.stderr


def test_catalog_has_all_systems():
    done = shoal("catalog", "--json")
    rows = json.loads(done.stdout)
    assert [r["number"] for r in rows] == list(range(1, 147))
    assert {"number", "slug", "title", "family", "module", "status", "claim"} == set(rows[0])


BAD = {
    "unknown slug": (["run", "dsgdd"], "did you mean dsgd"),
    "negative lr": (["run", "dsgd", "--set", "lr=-1"], "lr = -1"),
    "unknown field": (["run", "dsgd", "--set", "learning_rate=1"], "learning_rate"),
    "disconnected graph": (
        ["run", "just-one-byte", "--set", "network.graph=components(parts=2)"],
        "network.",
    ),
    "too many classes": (["run", "dsgd", "--set", "task.partition=classes(k=11)"], "k = 11"),
    "empty shard": (["run", "dsgd", "--peers", "5000"], "task."),
    "not a pair": (["run", "dsgd", "--set", "lr"], "--set"),
    "no such file": (["run", "missing.toml"], "missing.toml"),
    "no such module": (["run", "missing.py:Method"], "missing.py"),
    "zero peers": (["run", "dsgd", "--peers", "0"], "peers = 0"),
    "unknown suite": (["bench", "nothing"], "suite"),
    "no report": (["report", "nowhere"], "nowhere"),
    "unknown rule": (["run", "dsgd", "--set", "network.rule=medain"], "did you mean median"),
    "hostile without attack": (["run", "dsgd", "--set", "network.hostile=0.2"], "attack"),
    "not a number": (["run", "dsgd", "--peers", "few"], "--peers"),
    "unknown option": (["run", "dsgd", "--learning-rate", "1"], "--learning-rate"),
    "unknown runtime": (["run", "dsgd", "--runtime", "clusters"], "did you mean cluster"),
    "runtime as a number": (["run", "dsgd", "--set", "runtime=3"], "runtime = 3"),
    "blocks in one process": (["run", "dsgd", "--blocks", "3"], "blocks = 3"),
    "address in one process": (["run", "dsgd", "--address", "auto"], "address = 'auto'"),
    "more blocks than peers": (
        ["run", "dsgd", "--runtime", "cluster", "--peers", "4", "--blocks", "5"],
        "runtime.blocks = 5",
    ),
    "a runtime to run": (["run", "lattica"], "METHOD --runtime p2p; its claim: shoal check lattica"),
    "a runtime to compare": (["compare", "dsgd", "lattica"], "is the p2p runtime"),
    "no such scheme": (["run", "missing.dsl"], "missing.dsl"),
    "two demos": (["demo", "--cluster", "--p2p"], "one of the two"),
    "no such sweep": (["sweep", "missing.toml"], "missing.toml"),
    "nothing to sweep": (["sweep", "{config}"], "neither a table [sweep] nor a list of seeds"),
    "sweep elsewhere": (["sweep", "{config}", "--set", "runtime.blocks=2"], "--address and --workers"),
    "peer without a run": (["peer", "run"], "--config"),
    "peer of no such run": (["peer", "run", "--config", "missing.toml"], "missing.toml"),
    "bad listen": (["peer", "run", "--config", "{config}", "--listen", "here"], "listen = 'here'"),
    "bad ticket": (["peer", "run", "--config", "{config}", "--join", "shoal1aaaa"], "join = 'shoal1aaaa'"),
    "unknown transport": (["peer", "run", "--config", "{config}", "--transport", "mail"], "iroh or tcp"),
    "no such seat": (["peer", "run", "--config", "{config}", "--seat", "4"], "seat = 4: 0 to 3"),
    "no such data": (["peer", "run", "--config", "{config}", "--data", "nowhere"], "data = "),
    "no peer to run": (["peer", "run", "--config", "{config}"], "shoal peer init"),
    "no peer to ask": (["peer", "status"], "shoal peer init"),
    "no peer to invite to": (["peer", "invite"], "shoal peer run"),
    "no peer to relay": (["relay"], "shoal peer init"),
}
NOTHING = 'method = "dsgd"\npeers = 4\n[task]\nname = "supervised"\ndata = "digits"\n'


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name, tmp_path, tmp_path_factory, monkeypatch, capfd):
    args, said = BAD[name]
    config = tmp_path_factory.mktemp("config") / "run.toml"
    config.write_text(NOTHING)
    monkeypatch.setenv("SHOAL_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    # In this process: a new one would spend its time importing torch.
    monkeypatch.setattr(sys, "argv", ["shoal", *(arg.format(config=config) for arg in args)])
    with pytest.raises(SystemExit) as done:
        main()
    err = capfd.readouterr().err
    assert done.value.code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_bad_input_to_a_process_of_its_own(tmp_path):
    done = shoal("run", "dsgdd", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("shoal: method = 'dsgdd': unknown method; did you mean dsgd?")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,y\n1,2,0\n3,nan,1\n", "line 3, column b"),
        ("a,b,y\n1,2,0\n3,4\n", "line"),
        ("", "empty"),
        ("a,b,y\n", "row"),
    ],
)
def test_bad_csv(text, said, tmp_path):
    (tmp_path / "d.csv").write_text(text)
    done = shoal("run", "dsgd", "--set", "task.data=csv(path='d.csv')", "--out", "o", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr.lower(), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    done = shoal("run", "dsgd", *SMALL, "--out", str(tmp_path / "r"))
    assert done.returncode == 2 and "out" in done.stderr


def test_out_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    done = shoal("run", "dsgd", *SMALL, "--out", str(tmp_path / "file" / "r"))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_a_scheme_and_a_sweep_run_from_their_files(tmp_path):
    (tmp_path / "star.dsl").write_text(
        "# one round of averaging\ninit; feedback(2)[parallel(3)[train(epochs=1, batch=32); test];"
        " reduce(fedavg); broadcast]\n"
    )
    done = shoal("run", "star.dsl", "--set", "task.data=digits", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["system"], line["peers"], line["rounds"]) == ("ffl-dsl", 3, 2)
    assert Path(line["out"]).name.startswith("star-")
    (tmp_path / "few.toml").write_text(f"rounds = 2\nseeds = [0, 1]\n{NOTHING}")
    done = shoal("sweep", "few.toml", "--address", "none", "--workers", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [row["seed"] for row in told["rows"]] == [0, 1] and told["missing"] == 0
    assert told["out"] == "runs/sweep-few" and (tmp_path / told["out"] / "compare.html").exists()


def test_the_energy_of_a_run_is_told_or_said_to_be_unknown(tmp_path):
    for resume in (False, True):
        report = run("dsgd", task={"name": "supervised", "data": "digits"}, peers=4, rounds=2, seed=3,
                     out=tmp_path / "r", resume=resume)  # fmt: skip
        energy = report.final["energy_j"]
        assert energy == "not measured" or (not resume and energy > 0)


def test_own_csv_and_own_module(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    lines = ["a,b,c,d,label", *(",".join(map(str, [*r, c])) for r, c in zip(x.round(4), y, strict=True))]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))\n"
    )
    (tmp_path / "run.toml").write_text(
        'method = {name = "dsgd", lr = 0.5}\npeers = 6\nrounds = 15\n'
        '[task]\nname = "supervised"\ndata = {name = "csv", path = "mine.csv"}\n'
        'model = {name = "module", path = "net.py:Net"}\nbatch = 16\n'
        '[network]\ngraph = "ring"\n'
    )
    done = shoal("run", "run.toml", "--out", "o", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["accuracy"] > 0.85


MINE = '''
from dataclasses import dataclass
from typing import Annotated
from msgspec import Meta
from torch import Tensor
from shoal.core import Context, Method, Tick


@dataclass(frozen=True)
class State:
    x: Tensor


@dataclass(frozen=True)
class Sluggish(Method):
    """Mixes on even ticks only."""

    lr: Annotated[float, Meta(gt=0)] = 0.1

    def init(self, ctx: Context) -> State:
        return State(ctx.task.init())

    def step(self, s: State, tick: Tick, ctx: Context) -> State:
        x = ctx.task.sgd(s.x, tick.index, 2, self.lr, active=ctx.mine(tick.active))
        return State(ctx.net.mix(x, tick) if tick.index % 2 == 0 else x)
'''


def test_a_method_in_a_users_own_file(tmp_path):
    (tmp_path / "my.py").write_text(MINE)
    done = shoal(
        "run", "my.py:Sluggish", "--peers", "4", "--rounds", "6", "--set", "lr=0.2", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["accuracy"] > 0.2
    done = shoal("conform", "my.py:Sluggish", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(r["passed"] for r in json.loads(done.stdout.splitlines()[-1])["results"])


def test_conform_finds_what_is_wrong(tmp_path):
    (tmp_path / "my.py").write_text(
        MINE.replace("return State(ctx.net.mix(x", "s.x.add_(1)\n        return State(ctx.net.mix(x")
    )
    done = shoal("conform", "my.py:Sluggish", cwd=tmp_path)
    assert done.returncode == 1 and "pure" in done.stdout


def test_kill_and_resume_gives_the_same_result(tmp_path):
    # Small ticks that together take long enough to be killed in between.
    args = ["run", "dsgd", "--peers", "8", "--rounds", "300", "--seed", "1", "--set", "local_steps=8",
            "--set", "every=50", "--json"]  # fmt: skip
    whole = shoal(*args, "--out", "whole", cwd=tmp_path)
    command = [sys.executable, "-m", "shoal.cli", *args, "--out", "cut"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    until = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "finished before it could be killed"
    resumed = shoal(*args, "--out", "cut", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    one, two = (json.loads(r.stdout.splitlines()[-1]) for r in (whole, resumed))
    assert one["metrics"] == two["metrics"] and one["bytes_sent"] == two["bytes_sent"]


def test_interrupt_leaves_a_report(tmp_path):
    args = ["run", "dsgd", "--peers", "8", "--rounds", "20000", "--out", "o", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "o" / "checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads((tmp_path / "o" / "report.json").read_text())["status"] == "stopped"
