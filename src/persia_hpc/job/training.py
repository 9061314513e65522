"""What a trainer does in whatever job: the only place that builds a `Session`."""

from __future__ import annotations

import torch

from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.dense.allreduce import DenseReducer
from persia_hpc.trainer.dense.shared import SharedDense
from persia_hpc.trainer.following import Following
from persia_hpc.trainer.interfaces import BatchStream, NoPeers, Peers
from persia_hpc.trainer.saving import DenseState
from persia_hpc.trainer.session import Session

from .facts import Facts


def make_session(
    facts: Facts,
    stream: BatchStream,
    *,
    device: torch.device,
    peers: Peers | None = None,
    reducer: DenseReducer | SharedDense | None = None,
    resume: DenseState | None = None,
    initial: DenseState | None = None,
    following: Following | None = None,
) -> Session:
    """Returns a trainer's session on `stream`; without `peers` and `reducer` it is the only trainer."""
    return Session(
        facts.config,
        facts.layout,
        make_inputs(facts.layout, facts.schema),
        facts.schedules,
        stream=stream,
        peers=peers or NoPeers(),
        reducer=reducer or DenseReducer(None, facts.config.train.bucket_bytes),
        device=device,
        resume=resume,
        initial=initial,
        following=following,
    )
