"""Real jobs whose trainers compute on a GPU: reproducible, and equal to the CPU's but for rounding."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.mpi import run_mpi
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

PROGRAMS = Path(__file__).with_name("programs")
pytestmark = pytest.mark.gpu
NEEDS_HOROVOD = pytest.mark.skipif(find_spec("horovod") is None, reason="two trainers need Horovod")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 333)


def run(data: str, tmp_path: Path, trainers: int, **cases: dict[str, Any]) -> dict[str, Path]:
    """The run directory of each case, all in one job."""
    ranks = {"parameter_servers": 1, "embedding_workers": 1, "trainers": trainers}
    configs = [
        tiny_config(data, ranks=ranks, run_dir=str(tmp_path / name), **{"train.epochs": 2, **changes})
        for name, changes in cases.items()
    ]
    run_mpi(trainers + 2, PROGRAMS / "train_cases.py", json.dumps(configs), timeout=300)
    return {name: tmp_path / name for name in cases}


def assert_near(one: Path, other: Path, tolerance: float) -> None:
    rows, others = trained_rows(one), trained_rows(other)
    for table, (keys, weights, *_) in rows.items():
        assert np.array_equal(keys, others[table][0])
        np.testing.assert_allclose(weights, others[table][1], atol=tolerance)


# Two trainers share the GPU: their gradients go through host memory.
@pytest.mark.parametrize("trainers", [1, pytest.param(2, marks=NEEDS_HOROVOD)])
def test_a_gpu_gives_what_the_cpu_gives_and_repeats(data: str, tmp_path: Path, trainers: int) -> None:
    gpu = {"train.device": "cuda"}
    runs = run(data, tmp_path, trainers, cpu={"train.device": "cpu"}, one=gpu, two=gpu)
    assert run_digest(runs["one"]) == run_digest(runs["two"])
    assert_near(runs["one"], runs["cpu"], 1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_and_narrow_wires(data: str, tmp_path: Path, amp: str) -> None:
    wire = {"wire.rows": "fp16", "wire.gradients": "scaled_fp16", "data.valid": [data]}
    runs = run(
        data,
        tmp_path,
        1,
        cpu={"train.device": "cpu", **wire},
        gpu={"train.device": "cuda", "train.amp": amp, **wire},
    )
    cpu, gpu = (json.loads((path / "summary.json").read_text())["valid"]["logloss"] for path in runs.values())
    assert abs(gpu - cpu) < 0.02


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_cuda_graphs_change_nothing_but_rounding(data: str, tmp_path: Path, amp: str) -> None:
    pooled = {"features.history.pooling": "sum", "train.device": "cuda", "train.amp": amp}
    runs = run(data, tmp_path, 1, plain=pooled, graphs={**pooled, "train.cuda_graphs": True})
    assert_near(runs["graphs"], runs["plain"], 1e-4 if amp == "off" else 0.05)


@pytest.mark.parametrize("wire", ["fp32", "scaled_fp16"])
def test_rows_that_stay_on_the_gpu_are_those_that_stay_on_the_cpu(
    data: str, tmp_path: Path, wire: str
) -> None:
    reuse = {"mode": "hybrid", "exact": True, "staleness_bound": 3, "wire.reuse_steps": 2, "wire.rows": wire}
    gpu = {"train.device": "cuda", **reuse}
    runs = run(data, tmp_path, 1, cpu={"train.device": "cpu", **reuse}, one=gpu, two=gpu)
    assert run_digest(runs["one"]) == run_digest(runs["two"])
    assert_near(runs["one"], runs["cpu"], 1e-4)


def test_compiling_changes_nothing_but_rounding(data: str, tmp_path: Path) -> None:
    gpu = {"train.device": "cuda"}
    runs = run(data, tmp_path, 1, plain=gpu, compiled={**gpu, "train.compile": True})
    assert json.loads((runs["compiled"] / "summary.json").read_text())["compile_seconds"] > 0
    assert_near(runs["compiled"], runs["plain"], 1e-4)


@pytest.mark.parametrize("name", ["tower", "dcn_v2"])
def test_zero_columns_of_first_layers_change_nothing_but_rounding(
    data: str, tmp_path: Path, name: str
) -> None:
    """These models' inputs are 21 columns wide, which a GPU fills up to 32."""
    model = {"model": {"class": name, "hidden": [16]}}
    cases = {device: {**model, "train.device": device} for device in ("cpu", "cuda")}
    runs = run(data, tmp_path, 1, **cases)
    assert_near(runs["cuda"], runs["cpu"], 1e-4)
