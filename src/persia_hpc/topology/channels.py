"""Which rings a job has: a pure function of the plan."""

from __future__ import annotations

from persia_hpc.transport.layout import Channel

from .roles import Plan, Role


def row_channels(plan: Plan, ring_bytes: int) -> list[Channel]:
    """Three rings between every worker and every server: a pull that must wait may not block the push it
    waits for.
    """
    channels = []
    for w in range(plan.count(Role.EMBEDDING_WORKER)):
        worker = plan.row_rank(Role.EMBEDDING_WORKER, w)
        for s in range(plan.count(Role.PARAMETER_SERVER)):
            server = plan.row_rank(Role.PARAMETER_SERVER, s)
            channels += [
                Channel(worker, server, "pull", ring_bytes),
                Channel(worker, server, "push", ring_bytes),
                Channel(server, worker, "rows", ring_bytes),
            ]
    return channels


def feed_channels(plan: Plan, ring_bytes: int) -> list[Channel]:
    """Two rings between a trainer and each worker that feeds it; trainer 0, which commands, has them with
    all.
    """
    channels = []
    for t, workers in enumerate(plan.workers_of_trainer):
        trainer = plan.feed_rank(Role.TRAINER, t)
        for w in range(plan.count(Role.EMBEDDING_WORKER)) if t == 0 else workers:
            worker = plan.feed_rank(Role.EMBEDDING_WORKER, w)
            channels += [
                Channel(worker, trainer, "feed", ring_bytes),
                Channel(trainer, worker, "gradients", ring_bytes),
            ]
    return channels
