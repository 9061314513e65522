"""Declares what sums buckets of dense gradients over the trainers."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Sums(Protocol):
    """Sums buckets over the trainers. All of them start and finish all buckets, in their order, each step."""

    def attach(
        self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns for each bucket what it is filled in, and where its sum will be: on the host or `device`.

        They may be the same. A sum is there until its bucket is filled again.
        Shapes: [n] for each of `lengths`; what is filled has `dtype`, the sum may have float32.
        Collective over trainers.
        Raises UserError, on all alike, where these trainers can't be served.
        """

    def start(self, index: int) -> None:
        """Begins to sum a bucket that was filled; doesn't wait for other trainers."""

    def progress(self) -> None:
        """Does what can be done for the buckets that were started, without waiting."""

    def finish(self, index: int) -> None:
        """Waits for a bucket's sum."""

    def close(self) -> None:
        """Frees what it holds.

        Collective over trainers.
        """


def gpus_in_use(comm: Any, device: torch.device) -> list[str]:
    """Returns for each trainer the name of its GPU, alike for all that share one; "" for a CPU.

    Collective over `comm`.
    """
    name = ""
    if device.type == "cuda":
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # not in torch 2.4
        name = str(uuid or (platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES"), device.index))
    names: list[str] = comm.allgather(name)
    return names
