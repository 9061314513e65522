"""Steps in parts on several trainers: what whole steps give, to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.mpi import run_mpi
from tests.support.tiny import SEQUENCES, tiny_config, trained_rows, write_sequences

PROGRAMS = Path(__file__).with_name("programs")
MODES: dict[str, dict[str, Any]] = {
    "sync": {"mode": "sync"},
    "exact": {"mode": "hybrid", "exact": True},
    "async": {"mode": "async"},
}


def trained(run: Path) -> dict[str, np.ndarray]:
    rows = {f"{t}.{i}": a for t, arrays in trained_rows(run).items() for i, a in enumerate(arrays)}
    dense = torch.load(run / "latest" / "dense.pt", weights_only=True)["model"]
    return {**rows, **{f"dense.{name}": value.numpy() for name, value in dense.items()}}


def test_two_trainers_sum_all_parts_once(tmp_path: Path) -> None:
    """A batch of 33 and a last one of 3: the trainers' parts are of different sizes and numbers."""
    data = write_sequences(tmp_path / "data.h5", 33 * 6 + 3)
    adagrad = {"name": "adagrad", "lr": 0.1, "initial_accumulator_value": 0.01}
    cases = []
    for mode, changes in MODES.items():
        for accumulate in (1, 4):
            case = tiny_config(
                data, **SEQUENCES, **changes, run_dir=str(tmp_path / f"{mode}{accumulate}"), staleness_bound=2
            )
            if mode == "sync":
                del case["staleness_bound"]
            case["ranks"] = {"parameter_servers": 2, "embedding_workers": 1, "trainers": 2}
            case["data"]["batch_size"] = 33
            case["tables"]["default"]["optimizer"] = case["tables"]["item"]["optimizer"] = adagrad
            optimizer = {"name": "Adam", "lr": 0.01, "eps": 1e-3}
            # Small buckets: all but the last start during the last part's backward.
            case["train"] |= {"accumulate": accumulate, "optimizer": optimizer, "bucket_bytes": 64}
            cases.append(case)
    run_mpi(5, PROGRAMS / "train_cases.py", json.dumps(cases), timeout=240)
    for mode in ("sync", "exact"):
        whole, parts = trained(tmp_path / f"{mode}1"), trained(tmp_path / f"{mode}4")
        assert whole.keys() == parts.keys()
        for name, expected in whole.items():
            np.testing.assert_allclose(parts[name], expected, rtol=2e-4, atol=2e-6, err_msg=f"{mode} {name}")
    summaries = [json.loads((tmp_path / f"async{k}" / "summary.json").read_text()) for k in (1, 4)]
    ledgers = [summary["embedding"]["applied_rows"] for summary in summaries]
    assert ledgers[0] == ledgers[1]  # each pulled row was updated once, whatever the parts
    assert [summary["steps"] for summary in summaries] == [7, 7]
    assert summaries[1]["status"] == "completed"
    assert all(np.isfinite(array).all() for array in trained(tmp_path / "async4").values())
