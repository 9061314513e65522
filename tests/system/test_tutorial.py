"""docs/tutorial.md as a reader works through it: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import user_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# The line before a block names the file that it is; a block of `sh` without such a line is run.
BLOCK = re.compile(r"(?:^`([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STEP_SECONDS = 120


def work_through(folder: Path) -> dict[str, str]:
    """Does what the page says, in `folder`; returns what each block of commands printed."""
    env = user_environment()
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    printed = {}
    for name, language, text in BLOCK.findall(PAGE.read_text()):
        if name:
            (folder / name).write_text(text)
            continue
        assert language == "sh", f"a block of {language} that is neither a file nor commands:\n{text}"
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        printed[text] = done.stdout + done.stderr
    return printed


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    printed = work_through(tmp_path)
    page = " ".join(PAGE.read_text().split())

    def of(command: str) -> str:
        (text,) = (output for commands, output in printed.items() if command in commands)
        return text

    promised = re.search(r"a test AUC of about (\d\.\d+)", page)
    got = re.search(r"test auc (\d\.\d+)", of("--run-dir"))
    assert promised is not None
    assert got is not None
    assert float(got[1]) == pytest.approx(float(promised[1]), abs=0.015)

    counts = re.search(r"(\d+) users, (\d+) items and (\d+) countries", page)
    assert counts is not None
    for name, count in zip(("user", "item", "country"), counts.groups(), strict=True):
        assert re.search(rf"^{name} +1 +{count} ", of("inspect"), re.MULTILINE)

    scores = [float(line) for line in re.findall(r"^[\d.e-]+$", of("python serve.py"), re.MULTILINE)]
    served, predicted = scores[:3], scores[3:]
    assert len(served) == len(predicted) == 3
    assert served == pytest.approx(predicted, rel=1e-5)
    kept, made = (tmp_path / folder / "encoding.json" for folder in ("runs/tutorial", "data/clicks"))
    assert kept.read_bytes() == made.read_bytes()
