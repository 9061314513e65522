"""Records through real rings: every byte, in order, whatever the sizes and the pace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mpi.ring_scripts import draw_scripts, storm
from tests.support.mpi import run_mpi


@pytest.mark.parametrize("path", ["shared", "remote", "pieces"])
@pytest.mark.parametrize(("num_ranks", "num_scripts"), [(2, 40), (4, 8)])
def test_all_records_arrive_intact_and_in_order(
    programs: Path, tmp_path: Path, path: str, num_ranks: int, num_scripts: int
) -> None:
    scripts = [storm(1200 // num_ranks**2), *draw_scripts(num_scripts)]
    script_file = tmp_path / "scripts.json"
    script_file.write_text(json.dumps(scripts))
    done = run_mpi(num_ranks, programs / "ring_scripts.py", str(script_file), path)
    result = json.loads(done.stdout)
    assert result["full_waits"] > 0, "no ring was ever full: the scripts don't test what they are for"


@pytest.mark.parametrize("path", ["shared", "remote"])
def test_idle_loop_leaves_the_core_alone(programs: Path, path: str) -> None:
    done = run_mpi(2, programs / "idle.py", path)
    assert float(done.stdout) < 0.05, "share of a core that an idle polling loop takes"
