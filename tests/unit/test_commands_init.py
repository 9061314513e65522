"""`persia-hpc init`: what it writes trains, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.commands.init import count_gpus
from tests.support.tiny import write_tiny


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "train.h5", 600)
    write_tiny(tmp_path / "valid.h5", 100, seed=1)
    return tmp_path


def test_what_it_writes_trains(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "train.h5", "--valid", "valid.h5", "--test", "valid.h5"]) == 0
    assert capsys.readouterr().out == "train.toml: persia-hpc train train.toml\n"
    assert main(["train", "train.toml", "--one-process", "--quiet", "--run-dir", "run"]) == 0
    assert (data / "run" / "summary.json").exists()


def test_a_part_of_the_data_is_said_to_be_one(data: Path) -> None:
    assert main(["init", "train.h5", "--limit", "100", "--out", "part.toml"]) == 0
    text = (data / "part.toml").read_text()
    assert "from the first 100 of 600 samples" in text
    assert "ids seen, " in text


def test_it_never_writes_over_a_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train.toml").write_text("mine")
    assert main(["init", "train.h5"]) == 2
    assert (data / "train.toml").read_text() == "mine"
    said = capsys.readouterr().err
    assert said == "persia-hpc: error: --out: train.toml exists; give another name, or remove it first\n"


@pytest.mark.parametrize("option", [None, "--valid", "--test"])
def test_a_name_that_toml_cannot_have_is_refused(
    data: Path, option: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"bytes\xff.h5")
    (data / ("train.h5" if option is None else "valid.h5")).rename(data / name)
    assert main(["init", *([name] if option is None else ["train.h5", option, name])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("persia-hpc: error: bytes\\udcff.h5: got a name that isn't UTF-8")
    assert said.count("\n") == 1
    assert not (data / "train.toml").exists()


@pytest.mark.parametrize("name", ["é\x7f\t'\".h5", "del\x7f.h5", "\U0001f600.h5"])
def test_any_other_name_is_written_as_toml_has_it(data: Path, name: str) -> None:
    (data / "train.h5").rename(data / name)
    assert main(["init", name]) == 0
    assert ph.load_config("train.toml").data.train == [name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.h5"], "absent.h5"),
        (["train.h5", "--test", "absent.h5"], "absent.h5"),
        (["train.h5", "--limit", "0"], "--limit: got 0, expected 1 or more"),
        (["train.h5", "--out", "absent/train.toml"], "can't be written"),
        (["scored.h5"], "got no labels, expected files to train on"),
    ],
)
def test_bad_input_is_one_line(
    data: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(data / "scored.h5", 20, labels=False)
    assert main(["init", *arguments]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1
    assert not (data / "train.toml").exists()


@pytest.mark.parametrize("listed", [0, 3])
def test_gpus_are_those_of_the_driver_or_else_of_the_devices(listed: int, tmp_path: Path) -> None:
    assert count_gpus(tmp_path) == 0
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    for number in range(listed):
        (tmp_path / "proc/driver/nvidia/gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    assert count_gpus(tmp_path) == (listed or 2)
