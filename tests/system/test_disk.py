"""Training with tables larger than their memory equals training with memory for all rows, bit for bit."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.diff import differences
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.config import load_config
from persia_hpc.errors import EXIT_FAILURE, PersiaError, UserError
from persia_hpc.job.dry_run import dry_run
from tests.support.disks import small_disk
from tests.support.jobs import Job, wait_for
from tests.support.tiny import run_digest, tiny_config, write_tiny

SAMPLES, VOCABULARY = 990, 3000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    return write_tiny(folder / "train.h5", SAMPLES, vocabulary=VOCABULARY)


def settings(data: str, run_dir: Path, tier: Path | None, **changes: Any) -> dict[str, Any]:
    """Tables that have room for all rows, or for those of a step and the others below `tier`."""
    config = tiny_config(
        data, **{"run_dir": str(run_dir), "data.valid": [data], "train.epochs": 2, **changes}
    )
    for name in ("default", "item", "user"):
        config["tables"][name] |= {"buckets": 2, "capacity": "1 MiB"}
        if tier is not None:
            config["tables"][name] |= {
                "capacity": "12 KiB",
                "disk": {"path": str(tier), "capacity": changes.get("most", "4 MiB")},
            }
    config.pop("most", None)
    return config


def without_memory(summary: dict[str, Any]) -> dict[str, Any]:
    rows = {k: v for k, v in summary["embedding"].items() if "byte" not in k and "disk" not in k}
    return {**{k: summary[k] for k in ("steps", "samples", "valid")}, "rows": rows}


@pytest.fixture(scope="module")
def in_memory(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("memory") / "run"
    return run_dir, ph.train(settings(data, run_dir, None), quiet=True)


class Interrupt(ph.Callback):
    def on_step(self, run: Any) -> None:
        if run.step == 41:
            os.kill(os.getpid(), signal.SIGTERM)


def test_training_beyond_memory_is_training_in_memory(data: str, tmp_path: Path, in_memory: Any) -> None:
    """With incremental checkpoints, interrupted and resumed; and so is what a loaded run gives."""
    every = {"checkpoint.every": 9, "checkpoint.full_every": 3}
    config = settings(data, tmp_path / "run", tmp_path, **every)
    first = ph.train(config, callbacks=[Interrupt()], quiet=True)
    assert first["status"] == "interrupted"
    second = ph.train(
        settings(data, tmp_path / "run", tmp_path, **every, **{"checkpoint.resume": True}), quiet=True
    )
    run_dir, expected = in_memory
    assert run_digest(tmp_path / "run") == run_digest(run_dir)
    assert without_memory(second) == without_memory(expected)
    with (
        CheckpointReader(tmp_path / "run" / "latest") as mine,
        CheckpointReader(run_dir / "latest") as theirs,
    ):
        found = list(differences(mine, theirs, lambda *_: iter(())))
    assert found
    assert all(text.startswith("config ") for text in found)
    moved = second["embedding"]
    assert moved["disk_rows"] > 0.5 * moved["rows"]
    assert moved["to_disk_rows"] > moved["from_disk_rows"] > 1000
    assert expected["embedding"]["to_disk_rows"] == expected["embedding"]["disk_bytes"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    for name, where in (("disk", tmp_path / "run"), ("memory", run_dir)):
        ph.load(where).predict([data], tmp_path / f"{name}.csv")
    assert (tmp_path / "disk.csv").read_text() == (tmp_path / "memory.csv").read_text()


def test_a_job_that_was_killed_goes_on_and_leaves_no_file(data: str, tmp_path: Path) -> None:
    """`exact`, so rows are in flight while others go to disk; on two servers whose threads share tables."""
    changes = {
        "mode": "hybrid",
        "exact": True,
        "staleness_bound": 2,
        "train.epochs": 6,
        "checkpoint.every": 20,
    }
    alone = tmp_path / "alone"
    ph_config = settings(data, alone / "run", None, **changes)
    alone.mkdir()
    job = Job(alone, ph_config)
    code, _, err = job.end()
    assert code == 0, err
    tier, folder = tmp_path / "tier", tmp_path / "tiered"
    tier.mkdir()
    folder.mkdir()
    ranks = {"parameter_servers": 2, "embedding_workers": 1, "trainers": 1}
    tiered = settings(data, folder / "run", tier, **changes, ranks=ranks, server_threads=2)
    job = Job(folder, tiered)
    wait_for(lambda: (job.run_dir / "latest").exists(), 60)
    os.kill(job.ranks()[1].pid, signal.SIGKILL)
    assert job.end()[0] != 0
    assert list(tier.iterdir()) == []
    tiered["checkpoint"]["resume"] = True
    job = Job(folder, tiered)
    code, _, err = job.end()
    assert code == 0, err
    assert run_digest(folder / "run") == run_digest(alone / "run")


def test_a_disk_that_is_too_small_ends_the_run_and_a_larger_one_goes_on(
    data: str, tmp_path: Path, in_memory: Any
) -> None:
    config = settings(data, tmp_path / "run", tmp_path, most="40 KiB", **{"checkpoint.every": 5})
    with pytest.raises(PersiaError, match=r"disk tier in .* is full: .*; raise the table's disk.capacity"):
        ph.train(config, quiet=True)
    assert (tmp_path / "run" / "latest").exists()
    kept = read_manifest(tmp_path / "run" / "latest")["step"]
    assert kept % 5 != 0, "the last checkpoint is of the step at which it was full"
    ph.train(settings(data, tmp_path / "run", tmp_path, **{"checkpoint.resume": True}), quiet=True)
    assert run_digest(tmp_path / "run") == run_digest(in_memory[0])


def test_a_disk_that_is_full_in_the_last_step_ends_no_run(
    data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PersiaError, match="is full"):
        ph.train(settings(data, tmp_path / "run", tmp_path, most="40 KiB"), quiet=True)
    full = read_manifest(tmp_path / "run" / "latest")["step"]
    said = []
    for steps in (full - 2, full - 1):
        config = settings(data, tmp_path / f"{steps}", tmp_path, most="40 KiB", **{"train.max_steps": steps})
        summary = ph.train(config, quiet=True)
        assert (summary["status"], summary["steps"]) == ("completed", steps)
        said.append("is full: " in capfd.readouterr().err)
    assert said == [False, True]


def test_a_full_disk_ends_a_job_with_a_checkpoint(data: str, tmp_path: Path, in_memory: Any) -> None:
    """One of two servers finds it full: all ranks end at one step, and then the job fails with its line."""
    tier, ranks = tmp_path / "tier", {"parameter_servers": 2, "embedding_workers": 1, "trainers": 1}
    tier.mkdir()
    config = settings(data, tmp_path / "run", tier, most="60 KiB", mode="sync", ranks=ranks)
    code, _, err = Job(tmp_path, config).end()
    assert code == EXIT_FAILURE
    assert re.search(
        r"parameter_server \d.*disk tier in .* is full: .*; raise the table's disk.capacity", err
    )
    assert 0 < read_manifest(tmp_path / "run" / "latest")["step"] < in_memory[1]["steps"]
    config = settings(data, tmp_path / "run", tier, mode="sync", ranks=ranks, **{"checkpoint.resume": True})
    code, _, err = Job(tmp_path, config).end()
    assert code == 0, err
    assert run_digest(tmp_path / "run") == run_digest(in_memory[0])


def test_a_full_disk_drops_rows_when_told_to(
    data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(data, tmp_path / "run", tmp_path, most="40 KiB")
    for table in ("default", "item", "user"):
        config["tables"][table]["disk"]["on_full"] = "evict"
    summary = ph.train(config, quiet=True)
    assert summary["status"] == "completed"
    moved = summary["embedding"]
    assert moved["evicted_rows"] == moved["disk_full_rows"] > 100
    assert moved["disk_bytes"] <= 3 * (40 << 10)
    assert moved["evicted_in_flight_rows"] == 0
    said = re.findall(
        r"table '(\w+)': the disk tier in .* is full: .*; rows that it can't take are dropped",
        capfd.readouterr().err,
    )
    assert sorted(said) == sorted(set(said)) != []


def test_a_drive_that_is_full_ends_the_run_and_a_larger_one_goes_on(
    data: str, tmp_path: Path, in_memory: Any
) -> None:
    tier = tmp_path / "tier"
    with small_disk(tier, "128k"):
        config = settings(data, tmp_path / "run", tier, **{"checkpoint.every": 5})
        with pytest.raises(PersiaError, match=r"disk tier in .*tier: can't write: No space left on device"):
            ph.train(config, quiet=True)
    assert (tmp_path / "run" / "latest").exists()
    ph.train(settings(data, tmp_path / "run", tier, **{"checkpoint.resume": True}), quiet=True)
    assert run_digest(tmp_path / "run") == run_digest(in_memory[0])


def test_a_dry_run_says_where_rows_go_and_needs_no_drive(data: str, tmp_path: Path) -> None:
    """On a login node there may be none."""
    missing = tmp_path / "missing"
    texts = [dry_run(load_config(settings(data, tmp_path / "run", tier))) for tier in (missing, None)]
    assert re.search(
        rf"  item: .* over all servers; beyond, 4\.0 MiB in {missing}\); features: item", texts[0]
    )
    assert "beyond" not in texts[1]


def test_a_directory_that_is_not_there_is_named(data: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tables\.\w+\.disk\.path = '.*/missing': there is no such directory on"
    ):
        ph.train(settings(data, tmp_path / "run", tmp_path / "missing"), quiet=True)
