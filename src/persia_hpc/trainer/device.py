"""Which device a trainer computes on."""

from __future__ import annotations

import torch

from persia_hpc.errors import UserError


def choose_device(name: str, local_rank: int) -> torch.device:
    """`auto` is the GPU of the trainer's rank on its node if there is one, else the CPU; or a torch device by
    name.

    A launcher may show each rank only its own GPU: then that one is index 0.
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
