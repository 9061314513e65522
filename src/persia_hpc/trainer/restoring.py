"""Takes a run back to its best checkpoint, for the evaluations at its end (`train.restore_best`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dense.state import DenseState

if TYPE_CHECKING:
    from .session import Session


def restore(session: Session, step: int) -> None:
    """Gives the rows, the dense parameters and buffers, and their average the values of a checkpoint.

    Only evaluations may follow: the optimizer's state of the dense parameters stays what it is.

    Collective over trainers.
    Raises DataError if the checkpoint is damaged or gone.
    """
    saver, model = session.saver, session.model
    assert saver is not None, "this session has no run directory"
    assert model is not None, "call session.prepare(model) first"
    if session.trainer_rank == 0:
        saver.wait()
    session.peers.broadcast(None)  # until then it may not be whole
    directory = saver.directory(step)
    state = DenseState.read(directory)
    if session.trainer_rank == 0:
        if session.exporter is not None:
            session.exporter.restart()
        session.stream.restore(str(directory), session.step_number)
    session.peers.broadcast(None)
    state.load_model(model)
    session.updates.average.attach(model, state.average)
    if session.reducer.one_sided:  # what the trainers share is still what it was
        session.reducer.attach(model)
    session.state.restored_step = step
