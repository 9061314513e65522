"""`persia-hpc demo`: it does what its two printed commands do, also from a wheel; and what it refuses."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.commands import demo, train
from persia_hpc.commands.demo import configuration
from persia_hpc.preprocess import adult

DATA = Path(__file__).resolve().parents[2] / "datasets" / "adult"
SHORT = ("--one-process", "--set", "train.max_steps=3", "--set", "data.batch_size=64")


def test_it_runs_the_two_commands_that_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *SHORT, "--run-dir", "run"]) == 0
    said = capsys.readouterr().out
    assert "$ persia-hpc preprocess adult --out data/adult\n" in said
    assert (
        f"$ persia-hpc train data/adult/adult.toml {' '.join(SHORT[1:])} --run-dir run --one-process\n"
        in said
    )
    assert sorted(path.name for path in Path("data/adult").glob("*.h5")) == [
        "test.h5",
        "train.h5",
        "valid.h5",
    ]
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_configuration_that_is_there_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a [1] 'b'"
    out.mkdir()
    mine = configuration(out).replace("seed = 1", "seed = 77")
    (out / "adult.toml").write_text(mine)
    assert main(["demo", *SHORT, "--out", str(out)]) == 0
    assert (out / "adult.toml").read_text() == mine
    assert ph.load_config("runs/1/config.toml").seed == 77


@pytest.mark.parametrize("name", ["data/adult", "a b/[c]", "quote\"'\\", "é"])
def test_the_configuration_names_the_data(tmp_path: Path, name: str) -> None:
    file = tmp_path / "adult.toml"
    file.write_text(configuration(Path(name)))
    config = ph.load_config(file)
    found = [config.data.train, config.data.valid, config.data.test]
    assert found == [[f"{name}/train.h5"], [f"{name}/valid.h5"], [f"{name}/test.h5"]]
    assert config.ranks.trainers == 2


def test_what_sums_gradients_is_what_is_installed_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was installed when the configuration was written, unless somebody has said it."""
    monkeypatch.chdir(tmp_path)
    reducers: list[str] = []

    def note(options: argparse.Namespace) -> int:
        changes = ph.config.parse_set(options.set)
        reducers.append(ph.load_config(options.config, changes).train.reducer)
        return 0

    monkeypatch.setattr(train, "run", note)

    def reducer(horovod: bool, *more: str) -> str:
        monkeypatch.setattr(demo, "find_spec", lambda _: object() if horovod else None)
        assert main(["demo", *more]) == 0
        return reducers[-1]

    assert [reducer(each) for each in (True, False, True)] == ["horovod", "mpi", "horovod"]
    assert capsys.readouterr().out.count("adult.toml --set train.reducer=mpi\n") == 1
    assert reducer(False, "--set", "train.reducer=horovod") == "horovod"  # which is then refused
    assert reducer(False, "--one-process") == "horovod"  # which one trainer doesn't need
    written = Path("data/adult/adult.toml").read_text()
    for chosen in ("mpi", "nccl"):
        Path("data/adult/adult.toml").write_text(f'{written}reducer = "{chosen}"\n')
        assert reducer(horovod=True) == reducer(horovod=False) == chosen


def test_the_data_of_a_wheel_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the working directory nor the place of a source tree has them."""
    package = tmp_path / "lib" / "python" / "site-packages" / "persia_hpc"
    monkeypatch.setattr(adult, "__file__", str(package / "preprocess" / "adult.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ph.UserError, match="--input"):
        adult.find_input()
    shutil.copytree(DATA, package / "datasets" / "adult")
    assert adult.find_input() == package / "datasets" / "adult"


def test_a_rank_of_a_job_starts_no_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["demo"]) == 2
    assert "start it without mpiexec or srun" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", "file/adult"]) != 0
    said = capsys.readouterr().err
    assert said.startswith("persia-hpc: error: ")
    assert said.count("\n") == 1
