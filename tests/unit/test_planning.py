"""`persia-hpc plan`: what it refuses, and that what it prints is what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.config import load_config, to_toml
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.errors import UserError
from persia_hpc.planning import Given, Planner
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    data = write_tiny(tmp_path / "train.h5", 400)
    path.write_text(to_toml(load_config(tiny_config(data)).resolved()))
    return path


def planned(config: Path, *arguments: str) -> dict[str, Any]:
    out = config.parent / "plan.json"
    assert main(["plan", str(config), "--json", str(out), *arguments]) == 0
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def test_the_text_says_what_the_json_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(config, "--dense-rate", "10000", "--cores", "8", "--memory", "1 TiB")
    text = capsys.readouterr().out
    assert f"predicted: {found['samples_per_second']:,.0f} samples/s" in text
    assert f"bottleneck: {found['bottleneck']}" in text
    assert found["utilisation"][found["bottleneck"]] == 1
    assert found["fits"] is True
    assert found["batch"]["samples"] == 32
    assert {option["role"] for option in found["options"]} == {
        "parameter_server",
        "embedding_worker",
        "trainer",
    }
    assert found["samples_per_second"] <= 10000


def test_the_model_is_timed_and_nothing_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persia_hpc.planning.TRIAL_SECONDS", 0.05)
    before = sorted(config.parent.iterdir())
    monkeypatch.chdir(config.parent)
    found = Planner(load_config(config), Cluster(cores=4), Given())
    assert found.dense.sample_seconds >= 0
    assert found.dense.step_seconds + found.dense.sample_seconds > 0
    assert sorted(config.parent.iterdir()) == before


def test_suggested_ranks_are_faster_until_no_rank_pays(config: Path) -> None:
    planner = Planner(load_config(config), Cluster(cores=64), Given(dense_rate=1000.0))
    counts = planner.suggest()
    speed = planner.predict(counts).samples_per_second
    assert speed > 2 * planner.predict(planner.ranks).samples_per_second
    assert counts["trainers"] > 1
    assert all(option.samples_per_second < 1.05 * speed for option in planner.options(counts))


def test_trainers_are_not_suggested_beyond_gpus(config: Path) -> None:
    planner = Planner(load_config(config), Cluster(cores=64, gpus=1), Given(dense_rate=1000.0))
    assert {option.role for option in planner.options(planner.ranks)} == {
        "parameter_server",
        "embedding_worker",
    }


def test_ranks_per_node_are_added_on_each_node(config: Path) -> None:
    each = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}
    found = load_config(config, {"ranks": {"per_node": each}})
    cluster = Cluster(nodes=2, cores=64, link_bytes=1e9, latency_seconds=0.0)
    planner = Planner(found, cluster, Given(dense_rate=1000.0))
    assert planner.ranks["trainers"] == 4
    assert {o.role: o.counts[f"{o.role}s"] for o in planner.options(planner.ranks)} == {
        "parameter_server": 4,
        "embedding_worker": 4,
        "trainer": 6,
    }


def test_fewer_unique_rows_are_less_work(config: Path) -> None:
    def rows(*arguments: str) -> float:
        found = planned(config, "--dense-rate", "1000", *arguments)
        return float(found["batch"]["rows"])

    counted = rows()
    ids = planned(config, "--dense-rate", "1000")["batch"]["ids"]
    assert counted < ids
    assert rows("--unique-share", "1") == pytest.approx(ids, rel=0.05)
    assert rows("--unique-share", "0.5") == pytest.approx(rows("--unique-share", "1") / 2)


def test_an_earlier_run_in_one_process_gives_the_dense_time(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"train.save": False, "train.evaluate_at_end": False, "run_dir": str(run)}
    summary = ph.train(config, set=changes, quiet=True)
    phases = summary["phase_seconds"]["trainer"]
    dense = sum(phases[phase]["mean"] for phase in ("forward", "backward", "optimizer"))
    planner = Planner(load_config(config), Cluster(), Given(run=run))
    assert planner.dense.sample_seconds * 32 * summary["steps"] == pytest.approx(dense)
    other = load_config(config, {"tables.default.dim": 5})
    with pytest.raises(UserError, match=r"its \[tables\] differs"):
        Planner(other, Cluster(), Given(run=run))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no CONFIG"),
        (["{config}", "--gpus", "4"], "--gpus 4, but no --dense-rate"),
        (["{config}", "--nodes", "2"], "2 nodes, but no --link"),
        (["{config}", "--nodes", "9", "--link", "1", "--latency", "1"], "only 3 ranks for them"),
        (["{config}", "--dense-rate", "0"], "--dense-rate 0"),
        (["{config}", "--unique-share", "2"], "--unique-share 2"),
        (["{config}", "--new-rows", "-1"], "--new-rows -1"),
        (["{config}", "--memory", "much"], "--memory: 'much' is not a number of bytes"),
        (["{config}", "--constants", "none.toml"], "--constants none.toml can't be read"),
        (["{config}", "--from", "nowhere"], "--from nowhere: expected the run directory of a finished run"),
        (["--measure", "nowhere/x.toml"], "there is no directory nowhere"),
        (["--measure", "x.toml", "--constants", "y.toml"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line(
    config: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(a.format(config=config) for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
