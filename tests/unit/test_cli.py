"""The command line: help, exit codes, one line for each error."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import persia_hpc as ph
from persia_hpc.cli import COMMANDS, main
from persia_hpc.commands import status
from tests.support.jobs import write_config
from tests.support.tiny import run_digest, tiny_config, write_tiny

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
LAUNCHER_VARIABLES = re.compile("^(PMI|PMIX|OMPI|MV2|SLURM)_")


def persia(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not LAUNCHER_VARIABLES.match(k)}
    source = str(Path(__file__).resolve().parents[2] / "src")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "persia_hpc.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=60)


def test_names_in_errors_are_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "a\x1b[2J\udcff"]) == 2
    assert capsys.readouterr().err.startswith(r"persia-hpc: error: a\x1b[2J\udcff is not a run directory")


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> int:
        raise OSError(28, "No space left on device", "/a\x1bb")

    monkeypatch.setattr(status, "run", refuse)
    assert main(["status", "x"]) == 1
    assert capsys.readouterr().err == "persia-hpc: error: No space left on device: /a\\x1bb\n"


def test_memory_that_does_not_suffice_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "run", lambda _: np.empty(1 << 58))
    assert main(["status", "x"]) == 1
    assert re.fullmatch(r"persia-hpc: error: out of memory: Unable to .* float64\n", capsys.readouterr().err)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "preprocess"])
def test_help_of_each_command_has_an_example_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"  persia-hpc {command}" in text.partition("example")[2]
    assert "2 bad input" in text


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in ((["--help"], "doctor"), (["--version"], "persia-hpc ")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert part in capsys.readouterr().out


def test_commands_and_exit_codes_are_documented() -> None:
    text = DOCUMENT.read_text()
    for command in COMMANDS:
        assert f"persia-hpc {command}" in text
    for code in ("0", "1", "2", "3", "75", "128+n"):
        assert f"| {code} |" in text


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('modus = "sync"\n[data]\ntrain = "a.h5"\n[model]\nclass = "dlrm"\n')
    done = persia("train", "wrong.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "persia-hpc: error: wrong.toml: modus is not a known key; did you mean 'mode'?\n"
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.toml"]  # no run directory for a run that never was


def test_one_process_trains_as_python_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_tiny(tmp_path / "train.h5", 200)
    path = write_config(tmp_path / "job.toml", tiny_config(data))
    assert main(["train", str(path), "--one-process", "--run-dir", str(tmp_path / "run"), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    ph.train(path, set={"run_dir": str(tmp_path / "python")}, quiet=True)
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "python")


@pytest.mark.parametrize(
    ("load", "threads", "said"), [(50.0, None, True), (0.0, None, False), (50.0, 2, False)]
)
def test_one_process_says_that_threads_wait_on_a_busy_machine(
    load: float,
    threads: int | None,
    said: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    changes: dict[str, Any] = {"run_dir": str(tmp_path / "run"), "train.threads": threads}
    ph.train(tiny_config(write_tiny(tmp_path / "train.h5", 20)), set=changes)
    torch.set_num_threads(before)
    assert ("train.threads = 1 may be faster" in capfd.readouterr().err) == said


def test_one_process_leaves_no_file_open(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 40)
    gc.disable()
    try:
        ph.train(tiny_config(data, run_dir=str(tmp_path / "run")), quiet=True)
        opened = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    finally:
        gc.enable()
    assert data not in opened


def test_one_process_is_no_rank_and_no_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path / "job.toml", tiny_config(write_tiny(tmp_path / "train.h5", 20)))
    assert main(["train", str(path), "--one-process", "--dry-run"]) == 2
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["train", str(path), "--one-process"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["--dry-run" in errors[0], "without mpiexec" in errors[1]] == [True, True]


def test_usage_errors_have_exit_code_2(tmp_path: Path) -> None:
    assert persia("trian", cwd=tmp_path).returncode == 2
    assert persia("train", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "none.toml"], "there is no configuration file none.toml"),
        (["train", "none.toml", "--set", "x"], "expected KEY=VALUE"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["predict", "run", "--data", "a.h5", "--out", "a.txt"], "--out a.txt: expected a name that ends in"),
    ],
)
def test_errors_without_a_subprocess(
    arguments: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if LAUNCHER_VARIABLES.match(name):
            monkeypatch.delenv(name)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("persia-hpc: error: ")
    assert part in error
    assert error.count("\n") == 1


def test_only_one_rank_reports_an_error_that_all_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["report", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_report_of_a_run_and_of_a_failed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("")
    assert main(["report", str(tmp_path)]) == 0
    assert "hasn't ended" in capsys.readouterr().out
    summary = {"status": "completed", "steps": 12, "test": {"auc": 0.8123456789}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(9)))
    assert main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["status", "completed"],
        ["test.auc", "0.812346"],
        ["steps", "12"],
    ]
    assert [lines[-5], lines[-1]] == ['  {"step": 4}', '  {"step": 8}']
    (tmp_path / "failure.json").write_text(json.dumps({"world_rank": 3, "message": "no luck"}))
    assert main(["report", str(tmp_path)]) == 0
    assert "rank 3: no luck" in capsys.readouterr().out


def test_dir_shows_the_public_names() -> None:
    assert dir(ph) == ph.__all__
    assert all(getattr(ph, name).__name__ == name for name in ph.__all__)


def test_importing_configuration_and_command_line_is_quick_and_light() -> None:
    code = (
        "import sys, time; t = time.process_time(); import persia_hpc.config, persia_hpc.cli;"
        "heavy = {'torch', 'mpi4py', 'h5py', 'numpy', 'polars'} & set(sys.modules);"
        "print(sorted(heavy), time.process_time() - t < 0.3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


@pytest.mark.parametrize(
    "module", ["job.one_process", "job.local_stream", "cost_model.predict", "job.reader"]
)
def test_what_needs_no_mpi_does_not_start_it(module: str) -> None:
    """MPI starts when it is imported, and takes a tenth of a second and a thread."""
    code = f"import sys, persia_hpc.{module}; print('mpi4py.MPI' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_preprocessing_starts_without_torch(tmp_path: Path) -> None:
    code = "import sys; from persia_hpc.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "preprocess", "synthetic", "--rows", "100", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")
