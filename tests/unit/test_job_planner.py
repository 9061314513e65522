"""`persia-hpc plan`: what it refuses, and that what it prints is what the model says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.config import load_config, mib, to_toml
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.costs import PARQUET
from persia_hpc.cost_model.memory import node_memory
from persia_hpc.errors import UserError
from persia_hpc.job.planner import Given, Planner
from tests.support.parquet import write_parquet
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ranks": {"parameter_servers": 3, "embedding_workers": 2, "trainers": 2}, "mode": "hybrid"},
        {"tables.user.hash": {"size": 50, "rounds": 2}, "train.optimizer": {"name": "SGD", "lr": 0.1}},
        {"wire.rows": "bf16", "checkpoint.aside_bytes": "1 MiB", "data.batch_size": 100},
    ],
)
def test_a_dry_run_gives_every_role_the_same_memory(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit that both print, part by part."""
    values = tiny_config(write_tiny(tmp_path / "train.h5", 400), **changes)
    path = tmp_path / "train.toml"
    path.write_text(to_toml(load_config(values).resolved()))
    found = planned(path, "--dense-rate", "10000", "--cores", "16")
    plan = re.findall(r"^  (\w+): (.* MiB = .* rings)$", capsys.readouterr().out, re.MULTILINE)
    assert main(["train", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    dry = re.findall(r"^  each of \d+ (\w+)s: (.* MiB = .* rings)$", text, re.MULTILINE)
    assert dict(dry) == dict(plan)
    assert [role for role, _ in dry] == ["parameter_server", "embedding_worker", "trainer"]
    for (role, figures), key in zip(dry, ("tables, when full", "shuffled samples", "model"), strict=True):
        assert key in figures
        assert figures.startswith(mib(sum(found["memory_bytes"][role].values())))
    assert f": {mib(sum(found['node_memory_bytes'].values()))}, of which" in text


def test_disks_are_named_with_the_reads_that_they_may_get(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = 'tables.item.disk={path="/nowhere", capacity="3 MiB"}'
    found = planned(config, "--dense-rate", "1000", "--set", disk)
    text = capsys.readouterr().out
    (item,) = found["disks"]
    rows, per_second = found["batch"]["table_rows"], found["roles"]["trainers"] / found["step_seconds"]
    assert (item["table"], item["path"], item["capacity_bytes"]) == ("item", "/nowhere", 3 << 20)
    reads = item["most_reads_per_second"] * found["roles"]["parameter_servers"]
    assert any(reads == pytest.approx(n * per_second) for n in rows)
    assert "item: 3.0 MiB over all servers in /nowhere" in text
    assert planned(config, "--dense-rate", "1000")["disks"] == []


def test_parquet_takes_longer_to_read_and_a_row_group_is_held_whole(config: Path, tmp_path: Path) -> None:
    pattern, schema = write_parquet(tmp_path, 400, first=300, rows=300)
    found = {}
    for name, data in (("hdf5", []), ("parquet", [f'data.train=["{pattern}"]', f'data.schema="{schema}"'])):
        few = ["data.block_rows=10", "data.buffer_blocks=2", *data]
        found[name] = planned(config, "--dense-rate", "1000", *(t for text in few for t in ("--set", text)))
    read = [found[name]["phase_seconds"]["reader"]["read"] for name in ("hdf5", "parquet")]
    assert 1.0 < read[1] / read[0] <= PARQUET
    held = [found[n]["memory_bytes"]["embedding_worker"]["shuffled samples"] for n in ("hdf5", "parquet")]
    assert held[1] / held[0] == pytest.approx(300 / 20, rel=1e-3)


def test_the_model_is_timed_and_nothing_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persia_hpc.job.planner.TRIAL_SECONDS", 0.05)
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
    assert all(option.samples_per_second < 1.05 * speed for option in planner.options(counts)[0])


def test_trainers_are_not_suggested_beyond_gpus(config: Path) -> None:
    planner = Planner(load_config(config), Cluster(cores=64, gpus=1), Given(dense_rate=1000.0))
    assert {option.role for option in planner.options(planner.ranks)[0]} == {
        "parameter_server",
        "embedding_worker",
    }


def test_ranks_per_node_are_added_on_each_node(config: Path) -> None:
    each = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}
    found = load_config(config, {"ranks": {"per_node": each}})
    cluster = Cluster(nodes=2, cores=64, link_bytes=1e9, latency_seconds=0.0)
    planner = Planner(found, cluster, Given(dense_rate=1000.0))
    assert planner.ranks["trainers"] == 4
    assert {o.role: o.counts[f"{o.role}s"] for o in planner.options(planner.ranks)[0]} == {
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


@pytest.mark.parametrize(("batch", "least"), [(300, 0.8), (4000, 0.25)])
def test_a_step_longer_than_the_data_is_predicted_for_its_own_samples(
    config: Path, batch: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 samples: an epoch is 300 and 100, or a step of 4000 is one of 400. Without care steps seem too
    short: by a third, or ten times. Other work only makes them longer, but for what is extrapolated.
    """
    monkeypatch.setattr("persia_hpc.job.planner.TRIAL_SECONDS", 0.4)
    sleepy = {"model": {"class": "tests.support.models:Sleepy"}, "data.batch_size": batch}
    planner = Planner(load_config(config, sleepy), Cluster(cores=4), Given())
    found = planner.dense.step_seconds + batch * planner.dense.sample_seconds
    assert found > least * (1e-3 + 1e-4 * batch)


def test_the_optimizer_is_timed_apart(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persia_hpc.job.planner.TRIAL_SECONDS", 0.05)
    planner = Planner(load_config(config), Cluster(cores=4), Given())
    assert planner.dense.optimizer_seconds > 0
    phases = planner.predict(planner.ranks).costs.seconds["trainer"]
    assert phases["optimizer"] == pytest.approx(planner.dense.optimizer_seconds)


def run_of(config: Path, run: Path) -> dict[str, Any]:
    changes = {"train.save": False, "train.evaluate_at_end": False, "run_dir": str(run)}
    return ph.train(config, set=changes, quiet=True)


def test_an_earlier_run_in_one_process_gives_the_dense_time(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = run_of(config, run)
    phases = {phase: v["mean"] for phase, v in summary["phase_seconds"]["trainer"].items()}
    planner = Planner(load_config(config), Cluster(), Given(run=run))
    seconds = planner.predict(planner.ranks).costs.seconds["trainer"]
    model = phases["forward"] + phases["backward"]
    assert seconds["dense"] * summary["steps"] == pytest.approx(model)
    assert seconds["optimizer"] * summary["steps"] == pytest.approx(phases["optimizer"])
    other = load_config(config, {"tables.default.dim": 5})
    with pytest.raises(UserError, match=r"its \[tables\] differs"):
        Planner(other, Cluster(), Given(run=run))


def test_a_run_on_a_gpu_gives_what_its_trainer_did_itself(config: Path, tmp_path: Path) -> None:
    summary = run_of(config, tmp_path / "run")
    phases = {phase: v["mean"] for phase, v in summary["phase_seconds"]["trainer"].items()}
    planner = Planner(load_config(config), Cluster(gpus=1), Given(run=tmp_path / "run"))
    own = sum(phases[phase] for phase in ("pool", "forward", "backward", "optimizer", "other"))
    found = planner.predict(planner.ranks).costs.seconds["trainer"]["dense"]
    assert found * summary["steps"] == pytest.approx(own)


def test_threads_of_the_model_are_those_that_a_trainer_would_have(config: Path) -> None:
    def used(cluster: Cluster, *threads: int) -> int:
        wanted = "".join(f"threads = {n}\n" for n in threads)
        text = config.read_text().replace("\nthreads = 1\n", "\n" + wanted)
        (config.parent / "other.toml").write_text(text)
        found = load_config(config.parent / "other.toml")
        return Planner(found, cluster, Given(dense_rate=1000.0)).dense.threads

    assert used(Cluster(cores=12)) == 4  # three ranks
    assert used(Cluster(cores=12), 6) == 6
    assert used(Cluster(cores=2)) == 1
    assert used(Cluster(cores=12, gpus=1)) == 1


def test_what_keeps_a_rank_out_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = ["--set", "mode=hybrid", "--set", "staleness_bound=4"]
    found = planned(config, "--dense-rate", "1000", "--gpus", "1", "--cores", "64", *hybrid)
    text = capsys.readouterr().out
    assert found["bottleneck"] == "trainers"
    assert found["obstacles"] == {"trainer": "no GPU is left"}
    assert "add next: no role: trainers are the bottleneck, and no GPU is left" in text
    found = planned(config, "--dense-rate", "1e9", "--cores", "1")
    text = capsys.readouterr().out
    assert "add next: no role, but a node, or more cores in each" in text
    assert all(option["bottleneck"] for option in found["options"])


def test_ranks_that_do_not_fit_are_not_suggested(config: Path) -> None:
    found = load_config(config, {"ranks.trainers": 2})
    every = Planner(found, Cluster(cores=64), Given(dense_rate=1000.0))
    needed = sum(node_memory(every.job(every.ranks).plan, every.report(every.ranks).memory).values())
    cluster = Cluster(cores=64, memory_bytes=needed)
    planner = Planner(found, cluster, Given(dense_rate=1000.0))
    options, obstacles = planner.options(planner.ranks)
    assert obstacles["trainer"] == "it doesn't fit into the memory of its node"
    for option in options:
        assert planner.report(option.counts).fits
    assert planner.report(planner.suggest()).fits


def test_short_steps_of_ranks_that_share_cores_are_said_to_vary(config: Path) -> None:
    def varies(cores: int, rate: float) -> bool:
        planner = Planner(load_config(config), Cluster(cores=cores), Given(dense_rate=rate))
        return any("take it for a range" in line for line in planner.report(planner.ranks).lines())

    assert varies(2, 32 / 3e-3)  # three ranks, and steps of 3 ms
    assert not varies(3, 32 / 3e-3)
    assert not varies(2, 32 / 30e-3)


def test_rows_that_are_reused_are_said_to_be_left_out(config: Path) -> None:
    changes = {"mode": "hybrid", "staleness_bound": 4, "wire.reuse_steps": 2}
    planner = Planner(load_config(config, changes), Cluster(), Given(dense_rate=1000.0))
    assert any("wire.reuse_steps" in line for line in planner.report(planner.ranks).lines())
    planner = Planner(load_config(config), Cluster(), Given(dense_rate=1000.0))
    assert not any("reuse" in line for line in planner.report(planner.ranks).lines())


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
        (["--measure", "/"], "--measure /: got a directory"),
        (["absent.toml", "--measure", "x.toml"], "absent.toml"),
        (["{config}", "--measure", "x.toml", "--dense-rate", "-1"], "--dense-rate -1"),
        (["{config}", "--json", "/"], "--json /: got a directory"),
        (["{config}", "--json", "nowhere/x.json"], "there is no directory nowhere"),
        (["{config}", "--link", "inf", "--latency", "1"], "--link: got inf"),
        (["{config}", "--link", "1", "--latency", "inf"], "--latency: got inf"),
        (["{config}", "--dense-rate", "inf"], "--dense-rate inf"),
        (["{config}", "--allreduce-rate", "inf"], "--allreduce-rate inf"),
        (["{config}", "--cpu-cores", "2"], "--cpu-cores 2, but no --cpu-nodes"),
        (["{config}", "--memory", "0"], "--memory 0: expected more than 0 bytes"),
        (["{config}", "--gpus", "1", "--dense-rate", "9", "--set", "ranks.trainers=2"], "2 trainers"),
    ],
)
def test_bad_input_is_one_line(
    config: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(a.format(config=config) for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.parametrize("phase", ["x", {"mean": "x"}, {"mean": 10**400}, {}, [1], None])
def test_a_damaged_summary_is_one_line(
    config: Path, tmp_path: Path, phase: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "damaged"
    run.mkdir()
    (run / "config.toml").write_text(config.read_text())
    summary = {
        "roles": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1},
        "this_run": {"steps": 3},
        "phase_seconds": {"trainer": {"forward": {"mean": 1.0}, "backward": phase}},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["plan", str(config), "--dense-rate", "1000", "--from", str(run)]) == 2
    said = capsys.readouterr().err
    assert "its summary.json is damaged" in said
    assert len(said.splitlines()) == 1
