"""Ends the job from a rank: by MPI_Abort, and by force where that doesn't return."""

from __future__ import annotations

import os
import threading
from typing import Any, NoReturn

ABORT_SECONDS = 5.0  # MPI_Abort talks to the launcher, which may be behind a cut link


def abort(comm: Any, code: int) -> NoReturn:
    """Ends all ranks of an mpi4py communicator, or at least this one; never returns."""
    timer = threading.Timer(ABORT_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()
    comm.Abort(code)
    os._exit(code)  # Abort may return before the launcher kills: the error must not be said again
