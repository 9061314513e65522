"""What a parameter server does when the disk of a table takes no more rows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from persia_hpc._native import DiskError, PendingPull, mix
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from tests.support.tiny import tiny_config

ROWS = 300


def train(folder: Path, steps: int) -> ParameterServer:
    """New rows in each step; memory has room for few, and the disk for those of a few steps."""
    table = {"dim": 16, "optimizer": {"name": "sgd", "lr": 1.0}, "buckets": 1, "capacity": ROWS * 100}
    table["disk"] = {"path": str(folder), "capacity": "100 KiB"}
    given = {**tiny_config("none"), "features": {"a": {"table": "a"}}, "tables": {"a": table}, "mode": "sync"}
    config = load_config(given)
    server = ParameterServer(config, make_layout(config, DatasetSchema((FeatureSchema("a"),))))
    server.clock.begin_segment(1, 100)
    rows, counts = np.empty((ROWS, 16), np.float32), np.full(1, ROWS, np.uint32)
    for step in range(1, steps + 1):
        keys = np.sort(mix(np.arange(step * ROWS, (step + 1) * ROWS, dtype=np.uint64)))
        server.submit_pull(PendingPull(step, 0, keys, counts))
        for pull in server.ready_pulls():
            server.answer(pull, [rows])
        server.submit_push(step, 0, [rows])
        server.apply_ready()
        if server.disk_problem is not None:
            break
    assert server.clock.applied == step
    return server


def test_the_run_must_end_if_a_step_comes_after_the_disk_took_no_more(tmp_path: Path) -> None:
    server = train(tmp_path, 50)
    assert server.clock.applied < 20
    with pytest.raises(DiskError, match=r"table 'a': the disk tier in .* is full"):
        server.check_disk()


MANY_TABLES = """
import resource, sys
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

names = [f"t{i}" for i in range(60)]
disk = {"path": sys.argv[1], "capacity": "1 MiB"}
tables = {name: {"dim": 4, "capacity": "64 KiB", "disk": disk} for name in names}
data = {"train": ["none"], "batch_size": 16}
config = load_config({"data": data, "model": {"class": "dlrm"}, "tables": tables})
schema = DatasetSchema(tuple(map(FeatureSchema, names)))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))
try:
    ParameterServer(config, make_layout(config, schema))
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("hard", [500, 50])
def test_as_many_files_are_opened_as_the_process_may(hard: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY_TABLES, str(tmp_path), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if hard == 500:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 1
    assert re.fullmatch(
        r"table 't\d+': the disk tier in \S+: can't make a file there: Too many open files; let processes "
        r"have more of them \(ulimit -Hn, or LimitNOFILE of slurmd\); see tables.t\d+.disk.path\n",
        done.stderr,
    )


def test_a_disk_that_is_full_in_the_last_step_is_only_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every step is trained then, and every row is there."""
    last = train(tmp_path, 50).clock.applied - 1
    server = train(tmp_path, last)
    assert server.disk_problem is None
    assert not capfd.readouterr().err
    server.check_disk()
    assert "is full: " in (said := capfd.readouterr().err)
    assert "no step had to ask for rows any more" in said
    assert server.statistics()["rows"] == last * ROWS
    train(tmp_path, last - 1).check_disk()
    assert not capfd.readouterr().err
