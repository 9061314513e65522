"""What `persia-hpc doctor` makes of packages that are missing: a note, or a failure if they are asked for."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import partial
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.launch import doctor
from persia_hpc.launch.disk_speed import DiskSpeed, is_memory, measure_disk
from tests.support.disks import small_disk
from tests.support.jobs import write_config
from tests.support.tiny import tiny_config, write_tiny

FIND = importlib.util.find_spec


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that can't be found; the checks that start processes find nothing to say."""
    hidden: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else FIND(name))
    for check in ("_native", "check_mpi", "check_torch", "check_machine", "check_run_dir"):
        monkeypatch.setattr(doctor, check, lambda *_: [])
    return hidden


def levels(text: str) -> dict[str, str]:
    lines = [line.split() for line in text.splitlines() if "->" not in line]
    return {what: level for level, what, *_ in lines}


@pytest.mark.parametrize(
    ("options", "level", "code"),
    [
        (("--trainers", "1"), "note", 0),
        (("--trainers", "2"), "BAD", 1),
        (("--trainers", "2", "--reducer", "mpi"), "note", 0),
    ],
)
def test_only_several_trainers_miss_horovod(
    hide: set[str], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], level: str, code: int
) -> None:
    hide.add("horovod")
    assert main(["doctor", *options]) == code
    text = capsys.readouterr().out
    assert levels(text)["horovod"] == level
    assert "tools/build_horovod.sh" in text
    assert 'train.reducer = "mpi"' in text


@pytest.mark.parametrize("package", ["hdf5plugin", "polars"])
def test_what_only_some_commands_need_is_a_note_that_says_how_to_get_it(
    hide: set[str], capsys: pytest.CaptureFixture[str], package: str
) -> None:
    hide |= {"horovod", package}
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert levels(text)[package] == "note"
    assert f"-> pip install {package}\n" in text
    other = {"hdf5plugin", "polars"} - {package}
    assert levels(text)[other.pop()] == "ok"


def test_a_broken_horovod_is_a_failure_for_one_trainer_too(
    hide: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "run_probe", lambda *_: (1, None, "ImportError: libmpi.so.12"))
    assert main(["doctor"]) == 1
    assert "libmpi.so.12" in capsys.readouterr().out


def test_as_json(hide: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    hide.add("horovod")
    assert main(["doctor", "--trainers", "2", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["schema_version"], told["ok"]) == (1, False)
    found = {check["what"]: check for check in told["checks"]}
    assert found["horovod"]["level"] == "BAD"
    assert "build_horovod.sh" in found["horovod"]["fix"]
    assert found["python"]["level"] == "ok"
    assert all(set(check) == {"level", "what", "found", "fix"} for check in told["checks"])


def test_a_configuration_says_what_is_needed(
    hide: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[doctor.Wanted] = []
    monkeypatch.setattr(doctor, "examine", lambda wanted: asked.append(wanted) or [])
    data = write_tiny(tmp_path / "train.h5", 200)
    ranks = {"parameter_servers": 2, "embedding_workers": 1, "trainers": 3}
    config = tiny_config(data, ranks=ranks, run_dir=str(tmp_path / "runs"), **{"train.reducer": "mpi"})
    path = str(write_config(tmp_path / "train.toml", config))
    assert main(["doctor", path]) == 0
    assert main(["doctor", path, "--set", "data.batch_size=12", "--trainers", "1", "--run-dir", "other"]) == 0
    first, second = asked
    assert (first.ranks, first.trainers, first.reducer) == (6, 3, "mpi")
    assert first.run_dir == str(tmp_path / "runs")
    assert (second.ranks, second.trainers, second.run_dir) == (6, 1, "other")
    assert first.shared_bytes > second.shared_bytes > 0


def test_what_a_configuration_lacks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.toml").write_text('[data]\ntrain = "none.h5"\n[model]\nclass = "dlrm"\n')
    assert main(["doctor", str(tmp_path / "train.toml")]) == 2
    assert "none.h5" in capsys.readouterr().err
    assert main(["doctor", "--set", "seed=1"]) == 2
    assert "--set without a configuration" in capsys.readouterr().err


def test_a_number_that_no_job_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--trainers", "0"]) == 2
    assert "expected 1 or more" in capsys.readouterr().err


def test_a_disk_is_measured(
    hide: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "is_memory", lambda _: False)
    monkeypatch.setattr(doctor, "measure_disk", partial(measure_disk, file_bytes=8 << 20, seconds=0.02))
    assert main(["doctor", "--disk", str(tmp_path), "--disk", str(tmp_path / "missing")]) == 1
    text = capsys.readouterr().out
    rates = r"([\d,]+) / ([\d,]+) / ([\d,]+) a second with 1 / 16 / 64 at a time, fsync [\d.]+ ms"
    found = re.search(rf"disk {tmp_path} +random reads of 4 KiB: {rates}", text)
    assert found
    assert all(int(rate.replace(",", "")) > 0 for rate in found.groups())
    assert re.search(rf"BAD +disk {tmp_path}/missing +there is no such directory", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("speed", "level", "said"),
    [
        (DiskSpeed({1: 9e3, 16: 1e5, 64: 3e5}, 1e-4, True), "ok", "9,000 / 100,000 / 300,000 a second"),
        (DiskSpeed({1: 1e2, 16: 2e2, 64: 4e2}, 1e-2, True), "note", "fsync 10.00 ms"),
        (DiskSpeed({1: 1e6, 16: 1e6, 64: 1e6}, 1e-4, False), "note", "only through memory"),
    ],
)
def test_a_slow_disk_is_a_note(
    hide: set[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speed: DiskSpeed,
    level: str,
    said: str,
) -> None:
    monkeypatch.setattr(doctor, "is_memory", lambda _: False)
    monkeypatch.setattr(doctor, "measure_disk", lambda _: speed)
    main(["doctor", "--disk", str(tmp_path)])
    text = capsys.readouterr().out
    assert levels(text)["disk"] == level
    assert said in text


def test_memory_is_no_disk(hide: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert not is_memory(Path("/proc"))
    with small_disk(tmp_path / "tmpfs", "1m"):
        (tmp_path / "tmpfs" / "within").mkdir()
        assert is_memory(tmp_path / "tmpfs" / "within")
        assert main(["doctor", "--disk", str(tmp_path / "tmpfs" / "within")]) == 0
    assert re.search(r"note +disk .*within +is memory", capsys.readouterr().out)


def test_a_disk_that_fails_is_named(
    hide: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> DiskSpeed:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "is_memory", lambda _: False)
    monkeypatch.setattr(doctor, "measure_disk", fail)
    assert main(["doctor", "--disk", str(tmp_path)]) == 1
    assert re.search(r"BAD +disk .*Input/output error\n +-> name a directory", capsys.readouterr().out)
