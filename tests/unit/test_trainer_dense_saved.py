"""What two tensors of dense parts differ by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from persia_hpc.trainer.dense.saved import _difference

NAN = math.nan


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), ""),
        (torch.tensor([1.0, NAN]), torch.tensor([1.5, NAN]), "1 of 2 values differ by at most 0.5"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, NAN]), "1 of 2 values differ by at most inf"),
        (torch.tensor([2**62]), torch.tensor([2**62 + 1]), "1 of 1 values differ"),  # the same as float64
        (torch.tensor([1]), torch.tensor([1.0]), "torch.int64 [1] | torch.float32 [1]"),
    ],
)
def test_a_difference_is_told_to_the_bit(a: Tensor, b: Tensor, expected: str) -> None:
    found = _difference(a, b)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)
