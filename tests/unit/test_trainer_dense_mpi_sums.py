"""Memory for sums that a node may not have."""

from __future__ import annotations

import pytest
import torch
from mpi4py import MPI

from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.mpi_sums import MpiSums
from persia_hpc.transport import window


@pytest.mark.parametrize("grows", [False, True])
def test_memory_that_grows_is_no_problem(monkeypatch: pytest.MonkeyPatch, grows: bool) -> None:
    """The line that refuses says so: then the setting must be heeded."""
    monkeypatch.setattr(window, "available_memory", lambda: 100)
    sums = MpiSums(MPI.COMM_SELF, memory_grows=grows)
    if not grows:
        said = r"^the dense gradients of .*; use train\.reducer .*, or set transport\.memory_grows = true"
        with pytest.raises(UserError, match=said):
            sums.attach([1000], torch.float32, torch.device("cpu"))
    else:
        ((filled, summed),) = sums.attach([1000], torch.float32, torch.device("cpu"))
        filled.fill_(3)
        sums.start(0)
        sums.finish(0)
        assert summed.tolist() == [3.0] * 1000
        del filled, summed
    sums.close()
