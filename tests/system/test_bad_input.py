"""Bad input is refused before training: exit code 2 and one line that says what was got and how to fix it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.config.toml import to_toml
from tests.support.jobs import LAUNCHER_VARIABLES, Job, user_environment, write_config
from tests.support.mpi import mpiexec, run_mpi
from tests.support.tiny import SEQUENCES, tiny_config, write_sequences, write_tiny

PROGRAMS = Path(__file__).with_name("programs")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_tiny(tmp_path / "train.h5", 100)


def refused(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `persia-hpc train` says about a configuration that it must refuse without starting a rank."""
    path = tmp_path / "train.toml"
    path.write_text(to_toml(config))
    run_dir = tmp_path / "run"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(LAUNCHER_VARIABLES.match, list(os.environ)):
            patch.delenv(name)
        code = main(["train", str(path), "--run-dir", str(run_dir), *options])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert not run_dir.exists(), "a job was started"
    return one_line(err)


def one_line(err: str) -> str:
    found = re.fullmatch(r"persia-hpc: error: (.+)\n", err)
    assert found, err
    return found.group(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train": ["absent/*.h5"]}, r"absent/\*\.h5: no file matches .*check the path or prepare .*"),
        (
            {"data.valid": ["absent.h5"]},
            r"absent\.h5: no file matches .*; check the path or prepare the data",
        ),
        (
            {"staleness_bond": 3},
            r"\S+\.toml: staleness_bond is not a known key; did you mean 'staleness_bound'\?",
        ),
        ({"train.evaluate_evry": 3}, r"\S+: train\.evaluate_evry is .*; did you mean 'evaluate_every'\?"),
        ({"mode": "hybrid", "staleness_bound": -1}, r"\S+: staleness_bound = -1: expected at least 0"),
        (
            {"tables.default.capacity": "1 KiB"},
            r"table 'tags' has a capacity of 1 KiB = \d+ rows of 56 bytes, but one step of 32 samples may "
            r"need 64; give it at least 3584 bytes or lower data\.batch_size",
        ),
        (
            {"features.item": {"table": "item", "dim": 4}, "features.history.dim": 8},
            r"\S+: features\.history\.dim = 8, but its table 'item' has dim 4; .*",
        ),
        (
            {"features.tags": {"table": "shared", "dim": 4}, "tables.shared.dim": 8},
            r"\S+: features\.tags\.dim = 4, but its table 'shared' has dim 8; .*",
        ),
        (
            {"features.tags.table": "itme"},
            r"\S+: features\.tags\.table = 'itme': there is no \[tables\.itme\]; .* did you mean 'item'\?",
        ),
        ({"tables.spare.dim": 4}, r"\[tables\.spare\] is configured, but no feature uses it; .*item, user.*"),
        (
            {"features.usr.dim": 4},
            r"\[features\.usr\] is configured, but the dataset has no such feature; it has: item, user, .*",
        ),
        (
            {"data.features": ["item", "tgs"], "features": {}, "tables": {}},
            r"\S+train\.h5: got no feature 'tgs', expected one of item, user, .*; did you mean 'tags'\?",
        ),
        ({"ranks.trainers": 0}, r"\S+: ranks\.trainers = 0: expected a value from 1 to 100000"),
        ({"model.class": "dlmr"}, r"\S+: model\.class = 'dlmr': .*; did you mean 'dlrm'\?"),
    ],
)
def test_configurations(
    changes: dict[str, Any], message: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(tiny_config(data, **changes), tmp_path, capsys)
    assert re.fullmatch(message, said), said


def test_set_is_checked_like_the_file(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(tiny_config(data), tmp_path, capsys, "--set", "train.epochs=-2")
    assert said == "--set train.epochs = -2: expected at least 1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "neither an HDF5 nor a Parquet file; make datasets with `persia-hpc preprocess`.*"),
        ("feature", "got no feature 'user', expected the same as in .*; prepare both files alike .*"),
        ("lengths", "/ids/user: got 99 rows, expected 100 like /label; .*"),
        ("cut", r"can't read it \(.*truncated.*\); the file is damaged or incomplete: .*"),
    ],
)
def test_one_bad_file_of_several(
    name: str, message: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(write_tiny(tmp_path / "train-bad.h5", 100, seed=1))
    if name == "text":
        bad.write_text("label,item\n1,2\n")
    elif name == "cut":
        with bad.open("r+b") as raw:
            raw.truncate(bad.stat().st_size // 2)
    else:
        with h5py.File(bad, "r+") as file:
            user = file["ids/user"][:]
            del file["ids/user"]
            if name == "feature":
                del file.attrs["feature_names"]
            else:
                file["ids/user"] = user[:99]
    config = tiny_config(data, **{"data.train": [data, str(tmp_path / "train-*.h5")]})
    said = refused(config, tmp_path, capsys)
    assert re.fullmatch(f"{bad}: {message}", said), said


def test_what_only_ranks_can_see(data: str, tmp_path: Path) -> None:
    """The user's code and torch are not loaded by the supervisor; every rank gets the same one error."""
    (tmp_path / "broken_model.py").write_text("import not_there_at_all\n")
    old = {name: write_tiny(tmp_path / f"{name}.h5", 64, encoding=name) for name in ("there", "here")}
    ph.train(tiny_config(old["there"], run_dir=str(tmp_path / "old")), quiet=True)
    other = {"data.train": [old["here"]], "checkpoint.init_from": str(tmp_path / "old")}
    late = write_sequences(tmp_path / "late.h5", 20_000)
    with h5py.File(late, "r+") as file:
        offsets = file["ids/action/offsets"]
        row = 18_000 + int(np.diff(offsets[18_000:]).argmax())  # behind the rows that everybody compares
        offsets[row] += 1
    differs = {**SEQUENCES, "tables.action": {"dim": 4, "capacity": "1 MiB"}, "data.train": [late]}
    cases = [
        (
            differs,
            rf"late\.h5: got \d ids of 'history' but \d of 'action' in row {row - 1}, expected as many",
        ),
        (other, "checkpoint.init_from: .* was trained on data of encoding there, this run's data have here"),
        ({"model.class": "broken_model:M"}, "its module does not import: .*not_there_at_all.*"),
        ({"model.class": "tests.support.models:Smal"}, "has no 'Smal'; did you mean 'Small'.*"),
        ({"model.hiden": 4}, "'hiden'.*it takes: hidden=8"),
        ({"train.optimizer": {"name": "Adamm"}}, "'Adamm' is not in torch.optim; it has: .*Adam.*"),
        ({"train.optimizer": {"name": "Adam", "lrr": 1}}, "torch.optim.Adam refuses .*lrr.*"),
        ({"train.loss": "tests.support.models:absent"}, "train.loss.*absent"),
        ({"train.metrics": ["tests.support.models:absent"]}, "train.metrics.*absent"),
        ({"data.transform": "broken_model:f"}, "data.transform.*not_there_at_all"),
    ]
    configs = [
        tiny_config(data, **{"run_dir": str(tmp_path / f"run-{i}"), **changes})
        for i, (changes, _) in enumerate(cases)
    ]
    path = f"{tmp_path}:{user_environment()['PYTHONPATH']}"
    done = run_mpi(3, PROGRAMS / "refusals.py", json.dumps(configs), timeout=240, PYTHONPATH=path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(cases)
    for (_, message), ranks in zip(cases, lines, strict=True):
        assert ranks == [ranks[0]] * 3
        code, said = ranks[0]
        assert code == 2, said
        assert re.search(message, said), said
        assert "\n" not in said


def test_a_model_that_does_not_import(data: str, tmp_path: Path) -> None:
    (tmp_path / "broken_model.py").write_text("import not_there_at_all\n")
    job = Job(tmp_path, tiny_config(data, **{"model.class": "broken_model:M"}))
    code, _, err = job.end()
    assert code == 2, err
    *plan, last = err.splitlines()
    assert re.fullmatch("persia-hpc: error: model 'broken_model:M': its module .*not_there_at_all.*", last)
    assert all(re.fullmatch(r"(\S+: 1 parameter_server \(rank 0\), |cores: ).*", line) for line in plan), err
    assert not job.living()
    assert not (job.run_dir / "metrics.jsonl").exists()


def test_more_roles_than_ranks(data: str, tmp_path: Path) -> None:
    path = write_config(tmp_path / "train.toml", tiny_config(data, run_dir=str(tmp_path / "run")))
    command = [mpiexec(), "-n", "2", sys.executable, "-m", "persia_hpc.cli", "train", str(path)]
    done = subprocess.run(
        command, env=user_environment(), cwd=tmp_path, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("persia-hpc: error:")]
    assert errors == [
        "persia-hpc: error: the job has 2 ranks, but [ranks] asks for 1 parameter_server + 1 "
        "embedding_worker + 1 trainer = 3; start it with `-n 3` or change [ranks]"
    ]
    assert "Traceback" not in done.stderr
