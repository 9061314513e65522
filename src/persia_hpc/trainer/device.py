"""Which device a trainer computes on."""

from __future__ import annotations

import ctypes

import torch

from persia_hpc.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


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


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep what is freed for the next step; elsewhere nothing happens.

    By default tensors beyond 32 MiB are mapped and unmapped each time, and every page of them is faulted in
    and zeroed again: a quarter of the time of a step of 16384 samples.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 << 20)
