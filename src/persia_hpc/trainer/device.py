"""Chooses the device that a trainer computes on."""

from __future__ import annotations

import torch

from persia_hpc.config.types import TrainConfig
from persia_hpc.errors import UserError

from .dense.compiled import check_compiler


def prepare_device(train: TrainConfig, local_rank: int) -> torch.device:
    """Returns the device that a trainer computes on, set up as `[train]` says.

    Raises UserError for what isn't there, compilers included.
    """
    device = choose_device(train.device, local_rank)
    torch.set_float32_matmul_precision(train.matmul_precision)
    if train.compile:
        check_compiler(device)
    return device


def choose_device(name: str, local_rank: int) -> torch.device:
    """Returns the torch device called `name`; `auto` is a GPU if there is one, else the CPU.

    Without an index it is the GPU of the trainer's rank on its node. A launcher may show each rank only its
    own GPU, which then has index 0.

    Raises UserError for a name that torch doesn't know, and for a GPU where torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'train.device = "{name}" is no torch device; use "auto", "cpu" or "cuda"') from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f'train.device = "{name}", but torch sees no GPU; use "auto" or "cpu"')
        if device.index is None:
            device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device
