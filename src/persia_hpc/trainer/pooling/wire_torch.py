"""Encodes and decodes the wire formats with torch operations, to the same numbers as the native code.

U rows, D dim. On the wire a tensor is what `wire.Wire` says of the array, with int16 for uint16: torch has
few operations for the latter.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc.protocol.wire import Wire

KAPPA = 32768.0  # as in native/include/persia/codec.h
TINY = 2.0**-64


def decode(words: Tensor, wire: Wire, dim: int) -> Tensor:
    """Decodes rows from the wire.

    Shapes: returns [U, D] float32.
    """
    if wire.name == "bf16":
        words = words.view(torch.bfloat16)
    elif wire.name == "scaled_fp16":
        # Copied: contiguous() leaves a single row where it is, which may be no place for a float.
        scale = words.new_empty((len(words), 2)).copy_(words[:, dim:]).view(torch.float32)  # [U, 1]
        return words[:, :dim].contiguous().view(torch.float16).float() * (1 / KAPPA) * scale
    return words.to(torch.float32)


def encode(rows: Tensor, wire: Wire) -> Tensor:
    """Encodes rows for the wire.

    Shapes: rows [U, D] float32.
    """
    if wire.name == "fp16":
        return rows.half()
    if wire.name == "bf16":
        return rows.to(torch.bfloat16).view(torch.int16)
    if wire.name == "scaled_fp16":
        scale = rows.abs().amax(dim=1, keepdim=True)  # NaN if there is one
        up = torch.where(scale < TINY, 1 / TINY, 1.0)
        factor = torch.where(scale > 0, KAPPA / (scale * up), 0.0)
        words = (rows * up * factor).half().view(torch.int16)
        return torch.cat([words, scale.view(torch.int16)], dim=1)
    return rows


def to_array(words: Tensor, wire: Wire) -> npt.NDArray[Any]:
    """Returns a tensor from `encode` as the array that is sent."""
    array: npt.NDArray[Any] = words.cpu().numpy().view(wire.dtype)
    return array
