"""Today's code reads checkpoints of format 2 that were written before, and continues from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.manifest import read_manifest, read_schema
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.config import Config, load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.table_layout import make_layout
from tests.support.checkpoints import persia
from tests.support.tiny import tiny_config, trained_rows, write_tiny

STORED = Path(__file__).parents[1] / "data" / "checkpoint_v2"
STEPS = ("step-00000004", "step-00000008")
LAST = 9


def job(data: str, **changes: Any) -> dict[str, Any]:
    """Returns the configuration that the stored checkpoints were made with, in one process."""
    settings: dict[str, Any] = {
        "train.max_steps": LAST,
        "tables.default.optimizer": {"name": "adam", "lr": 0.01},
        "tables.default.storage": "bf16",
        "tables.default.capacity": "32 KiB",
        "tables.item.capacity": "32 KiB",
        "tables.item.eviction": "lfu",
        "tables.user.capacity": "32 KiB",
        "tables.user.admission": {"after": 2},
    }
    return tiny_config(data, **{**settings, **changes})


def expected(step: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads((STORED / "rows.json").read_text())[step]
    return found


def described(columns: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    return {
        name: [len(values), hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()]
        for name, values in columns.items()
    }


def settings_of(step: str, **changes: Any) -> Config:
    config: dict[str, Any] = read_manifest(STORED / step)["config"]
    return load_config({**config, **changes})


@pytest.mark.parametrize("step", STEPS)
def test_it_is_read_as_it_was(step: str) -> None:
    with CheckpointReader(STORED / step) as reader:
        columns = {
            f"{name}.{column}": values
            for name, table in reader.tables.items()
            for column, values in table.read(0, table.num_buckets).items()
        }
    assert described(columns) == expected(step)


@pytest.mark.parametrize("num_servers", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_servers_load_the_rows_it_has(step: str, num_servers: int) -> None:
    """Each row lies in exactly one server, with the weights that it was written with."""
    config = settings_of(step)
    layout = make_layout(config, read_schema(read_manifest(STORED / step)))
    servers = [
        ParameterServer(config, layout, server_rank=s, num_servers=num_servers) for s in range(num_servers)
    ]
    for server in servers:
        load_rows(STORED / step, server)
    with CheckpointReader(STORED / step) as reader:
        for i, table in enumerate(layout.tables):
            stored = reader.tables[table.name].read(0, table.num_buckets)
            bucket = stored["keys"] >> np.uint64(64 - (table.num_buckets.bit_length() - 1))
            found = np.zeros(len(bucket), int)
            for server in servers:
                native = server.tables[i]
                assert native is not None
                mine = (bucket >= native.first_bucket) & (bucket < native.end_bucket)
                rows = np.full((mine.sum(), table.dim), np.nan, np.float32)
                native.lookup(stored["keys"][mine], rows)
                np.testing.assert_array_equal(rows, stored["rows"][mine])
                assert native.num_rows == mine.sum()
                found += mine
            assert (found == 1).all()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    shutil.copytree(STORED, tmp_path / "run")
    return tmp_path / "run"


def test_it_verifies(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = persia(capsys, "verify", run_dir)
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [[step, "ok"] for step in reversed(STEPS)]


def test_training_continues_from_it(run_dir: Path, tmp_path: Path) -> None:
    """Up to the last step, where it has the rows of a run that wasn't interrupted."""
    data = write_tiny(tmp_path / "train.h5", 330, vocabulary=120)
    summary = ph.train(job(data, run_dir=str(run_dir), **{"checkpoint.resume": True}), quiet=True)
    assert (summary["steps"], summary["this_run"]["steps"]) == (LAST, LAST - int(STEPS[-1].split("-")[1]))
    ph.train(job(data, run_dir=str(tmp_path / "whole")), quiet=True)
    resumed, whole = trained_rows(run_dir), trained_rows(tmp_path / "whole")
    assert resumed.keys() == whole.keys() == {"item", "tags", "user"}
    for name in whole:
        for a, b in zip(resumed[name], whole[name], strict=True):
            # The stored steps were computed on another machine, whose sums may be rounded otherwise.
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
