"""`persia-hpc bench table` refuses what it can't measure."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from persia_hpc.bench.table_peer import check_peer, torch_threads
from persia_hpc.cli import main


@pytest.mark.parametrize("size", ["0", "100001"])
def test_call_keys_out_of_range_are_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "table", "--call-keys", size]) == 2
    assert f"--call-keys {size}: expected 1 to 100000" in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)  # an import of it fails
    assert main(["bench", "table", "--peer", "fbgemm"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "pip install --no-deps fbgemm-gpu-cpu==1.8.0" in lines[0]


def test_an_optimizer_that_the_peer_has_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "table", "--peer", "fbgemm", "--optimizers", "adam"]) == 2
    assert "got --optimizers adam, expected adagrad or rowwise_adagrad" in capsys.readouterr().err


def test_the_peer_decays_no_weights_and_keeps_to_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """FBGEMM's CPU code ignores weight_decay, so that no other value would be compared like with like."""
    got: dict[str, Any] = {}

    class Codegen:
        def __init__(self, specs: list[Any], **options: Any) -> None:
            got.update(options, specs=specs)

        def init_embedding_weights_uniform(self, low: float, high: float) -> None: ...

    class Names:
        HOST, CPU, EXACT_ROWWISE_ADAGRAD = "host", "cpu", "rowwise"

    code = ModuleType("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    configs = ModuleType("fbgemm_gpu.split_embedding_configs")
    vars(code).update(
        SplitTableBatchedEmbeddingBagsCodegen=Codegen, EmbeddingLocation=Names, ComputeDevice=Names
    )
    vars(configs).update(EmbOptimType=Names)
    for module in (ModuleType("fbgemm_gpu"), code, configs):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    check_peer(["rowwise_adagrad"])
    assert got["weight_decay"] == 0
    assert got["optimizer"] == "rowwise"
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
