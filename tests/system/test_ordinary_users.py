"""A package that nobody may write to, no home, and names with spaces, brackets and bytes that are no text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import persia_hpc
from tests.support.jobs import PACKAGE, user_environment, write_config
from tests.support.tiny import tiny_config, write_tiny

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def read_only(folder: Path) -> list[str]:
    """What to put in front of a command that must not write there; and takes the right to from the folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        return []
    return ["unshare", "-m", "sh", "-c", READ_ONLY, str(folder)]  # rights don't keep root out


def test_what_an_ordinary_user_has_is_enough(tmp_path: Path) -> None:
    package, work = tmp_path / "site [read] only", tmp_path / "my work [v2]"
    runs = os.fsdecode(b"runs [x]/1 \xe9t\xe9")  # in Latin-1
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(persia_hpc.__file__).parent, package / "persia_hpc", ignore=ignored)
    work.mkdir()
    write_tiny(work / "train [1].h5", 640)
    config = tiny_config("train [1].h5", **{"data.test": ["train [[]*.h5"], "train.max_steps": 10})
    write_config(work / "my job [1].toml", config)
    env = user_environment() | {"HOME": str(tmp_path / "nowhere"), "TMPDIR": str(work)}
    env["PYTHONPATH"] = env["PYTHONPATH"].replace(str(PACKAGE), str(package), 1)
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    prefix = read_only(package)

    def run(*words: str) -> str:
        command = [*prefix, sys.executable, "-m", "persia_hpc.cli", *words]
        done = subprocess.run(command, cwd=work, env=env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        run("train", "my job [1].toml", "--run-dir", runs)
        assert '"auc"' in run("evaluate", runs)
        assert "completed: 10 steps" in run("status", runs)
        run("report", runs, "--html", "a [page].html")
        run("checkpoint", "verify", runs)
        run("checkpoint", "export", runs, "--table", "user", "--out", "user [1].parquet")
        run("predict", runs, "--data", "train [1].h5", "--out", "p [1].parquet")
        run("inspect", "train [1].h5")
        assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == before
        assert not (tmp_path / "nowhere").exists()
    finally:
        for path in (package, *package.rglob("*")):
            path.chmod(0o755)  # else an ordinary user's pytest can't remove them
