"""persia-hpc, as a rank; the last one's disk breaks where the ranks don't ask each other how it went."""

import errno
import os
import sys
from typing import Any

from mpi4py import MPI

from persia_hpc.cli import main
from persia_hpc.preprocess.bad_lines import BadLines


def fail(*_: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    BadLines.share = fail  # type: ignore[method-assign]
sys.exit(main())
