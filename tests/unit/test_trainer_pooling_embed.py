"""Which kernel pools a batch: one that can read the device's addresses, or a clear line."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.trainer.pooling import embed
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch

INPUTS = make_inputs([], num_dense=1)
CUDA_MODULE = ModuleType("_cuda")


class LaunchedError(Exception):
    """Stands for a launch of the CUDA kernels; holds the module that would have been given addresses."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU as far as the choice of the kernel goes; call it with the module, or with why there is none."""

    def launch(groups: Any, row_batch: Any, staging: Any, rings: Any, module: Any, pooled: Any) -> None:
        raise LaunchedError(module)

    def plug(module: ModuleType | None, problem: str = "") -> None:
        monkeypatch.setattr(embed, "cuda_module", lambda device: (module, problem))

    monkeypatch.setattr(embed, "Staging", lambda device: None)
    monkeypatch.setattr(embed, "CudaKernel", launch)
    return plug


def batch() -> RowBatch:
    return make_row_batch(INPUTS, {}, np.random.default_rng(0))


def launched(pooling: Pooling) -> Any:
    with pytest.raises(LaunchedError) as caught:
        pooling.embed(batch(), training=False)
    return caught.value.args[0]


@pytest.mark.parametrize("kernel", [None, "cuda"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_is_launched_by_the_cuda_module_whether_asked_for_or_not(
    gpu: Any, device: str, kernel: str | None
) -> None:
    gpu(CUDA_MODULE)
    pooling = Pooling(INPUTS, device, kernel=kernel)
    assert pooling.kernel == "cuda"
    assert launched(pooling) is CUDA_MODULE


def test_the_cuda_kernels_run_on_the_host_for_a_cpu(gpu: Any) -> None:
    gpu(CUDA_MODULE)
    assert launched(Pooling(INPUTS, "cpu", kernel="cuda")) is _native


def test_without_the_module_torch_stands_in_unless_cuda_was_asked_for(
    gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(None, "the driver is too old")
    with caplog.at_level(logging.WARNING, "persia_hpc"):
        assert Pooling(INPUTS, "cuda").kernel == "torch"
    assert "the driver is too old" in caplog.text
    with pytest.raises(UserError, match='"cuda" on the device "cuda": the driver is too old; use "torch"'):
        Pooling(INPUTS, "cuda", kernel="cuda")


@pytest.mark.parametrize(
    ("device", "kernel", "fitting"),
    [
        ("cuda", "native", '"cuda" or "torch"'),
        ("meta", "native", '"torch"'),
        ("meta", "cuda", '"torch"'),
        ("cpu", "Cuda", "native, cuda or torch"),
        ("cuda", "tensor", "native, cuda or torch"),
    ],
)
def test_a_kernel_that_does_not_fit_the_device_is_refused(
    gpu: Any, device: str, kernel: str, fitting: str
) -> None:
    gpu(CUDA_MODULE)
    with pytest.raises(UserError) as caught:
        Pooling(INPUTS, torch.device(device), kernel=kernel)
    assert f'"{kernel}" on the device "{device}"' in str(caught.value)
    assert fitting in str(caught.value)


@pytest.mark.parametrize(("device", "best"), [("cpu", "native"), ("meta", "torch")])
def test_a_device_without_cuda_takes_its_own_best(gpu: Any, device: str, best: str) -> None:
    gpu(CUDA_MODULE)
    assert Pooling(INPUTS, device).kernel == best
