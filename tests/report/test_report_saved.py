"""Runs on disk: tables, model files, what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from report_fakes import CLASSES, bandit_report, fake_report

from shoal.core import BadInput, Report
from shoal.report import model_file
from shoal.report.model_file import load_model
from shoal.report.save import load, save


def test_a_saved_report_reads_back_as_it_was(tmp_path: Path) -> None:
    report = fake_report()
    save(report, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.rows == report.rows
    assert again.config == report.config
    assert again.final == report.final
    assert (again.system, again.notes, again.status, again.wall_s, again.layers) == (
        report.system, report.notes, report.status, report.wall_s, report.layers,
    )  # fmt: skip
    assert torch.equal(again.output, report.output)
    assert torch.equal(again.peers["accuracy"], report.peers["accuracy"])
    assert again.hostile is not None and report.hostile is not None and report.graph is not None
    assert torch.equal(again.hostile, report.hostile)
    assert again.graph is not None
    assert torch.equal(again.graph.matrix(), report.graph.matrix())
    assert all(torch.equal(a, b) for a, b in zip(again.links, report.links, strict=True))
    assert again.summary() == report.summary()


def test_tables_and_config_are_what_other_tools_read(tmp_path: Path) -> None:
    report = fake_report()
    save(report, tmp_path)
    assert pq.read_table(tmp_path / "metrics.parquet")["accuracy"].to_pylist() == [
        row["accuracy"] for row in report.rows
    ]
    assert pq.read_table(tmp_path / "metrics.parquet")["attack_success"].to_pylist()[0] is None
    links = pq.read_table(tmp_path / "links.parquet").to_pylist()
    assert sum(link["bytes"] for link in links) == int(report.links[2].sum())
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    assert config["method"] == report.config["method"]
    assert "gamma" not in config["network"]
    head = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert head["summary"]["bytes_sent"] == report.bytes_sent
    assert not list(tmp_path.glob("*.part"))


def test_other_outputs_are_kept_as_data_and_the_rest_is_named(tmp_path: Path) -> None:
    report = bandit_report()
    report.output = {"pulls": torch.arange(6.0).reshape(2, 3), "log": [["a"], ["b"]], "odd": object()}
    save(report, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.output["pulls"], report.output["pulls"])
    assert again.output["log"] == [["a"], ["b"]]
    assert any("odd" in note for note in again.notes)
    assert (tmp_path / "report.html").exists()


def test_a_second_run_in_the_folder_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    save(fake_report(), tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"mine")
    save(bandit_report(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "graph.parquet").exists()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"mine"
    assert load(tmp_path).system == "fedexp3"


def test_a_save_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(bandit_report(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(report: Report) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("shoal.report.save.page", full)
    with pytest.raises(OSError, match="disk full"):
        save(fake_report(), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["report.json", "metrics.parquet", "links.parquet", "model.safetensors"])
def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    save(fake_report(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(BadInput) as error:
        load(tmp_path)
    assert error.value.value == str(tmp_path / name) and "\n" not in str(error.value)


def test_a_folder_without_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape("report.json")):
        load(tmp_path)


# The model file.


def test_the_merged_model_is_the_mean_of_the_honest_peers(tmp_path: Path) -> None:
    report = fake_report()
    save(report, tmp_path)
    model = load_model(tmp_path / "model.safetensors")
    assert report.hostile is not None
    mean = report.output[~report.hostile].mean(0)
    x = torch.randn(5, 8)
    weight, bias = mean[:80].reshape(10, 8), mean[80:]
    assert model.state_dict().keys() == {"w", "b"}
    assert torch.allclose(model.state_dict()["w"], weight)
    assert torch.allclose(model.state_dict()["b"], bias)
    assert model(x).shape == (5, CLASSES)
    assert torch.equal(model.predict(x), model(x).argmax(-1))
    own = load_model(tmp_path, peer=4)
    assert torch.equal(own.x[0], report.output[4])
    with pytest.raises(BadInput, match="0 to 31"):
        load_model(tmp_path, peer=32)
    with pytest.raises(BadInput, match=r"\[B, 8\]"):
        model(torch.zeros(5, 9))


def test_very_many_models_are_not_kept_but_the_merged_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "LARGEST", 100)
    monkeypatch.setattr("shoal.report.save.LARGEST", 100)
    save(fake_report(), tmp_path)
    merged = load_model(tmp_path).x
    with pytest.raises(BadInput, match="merged model only"):
        load_model(tmp_path, peer=0)
    again = load(tmp_path)
    assert any("merged model" in note for note in again.notes)
    save(again, tmp_path)  # what `shoal report` does must not lose the model
    assert torch.equal(load_model(tmp_path).x, merged)


def test_model_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a readable model file"):
        load_model(tmp_path / "none.safetensors")
    report = fake_report()
    del report.final["model"]
    save(report, tmp_path)
    with pytest.raises(BadInput, match="does not say what model"):
        load_model(tmp_path)
