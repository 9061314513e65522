"""Makes an error of one rank the same error on all, before the first window exists."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from persia_hpc.errors import EXIT_FAILURE, EXIT_USER, AgreedError, PersiaError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource, Source

from .facts import catalogue_columns

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")
LOG = logging.getLogger("persia_hpc")
# Servers and workers are ready seconds before trainers have PyTorch: sleeps of this part of the time waited.
_SLEEP_PART = 0.02
_SLEEP_SECONDS = (100e-6, 10e-3)  # at least and at most


def meet(world: MPI.Intracomm) -> None:
    """Returns when all ranks are here; a rank that waits leaves its core to those that still prepare.

    MPI's own collective calls poll without a pause.

    Collective over world.
    """
    request, begin = world.Ibarrier(), time.monotonic()
    least, most = _SLEEP_SECONDS
    while not request.Test():
        time.sleep(min(max(least, _SLEEP_PART * (time.monotonic() - begin)), most))


def agree(world: MPI.Intracomm, prepare: Callable[[], T]) -> T:
    """Runs `prepare` on every rank; if it fails anywhere, the lowest failing rank's error ends all.

    Collective over world.
    Raises AgreedError on every rank.
    """
    problem = None
    try:
        result = prepare()
    except PersiaError as error:
        problem = (error.exit_code, str(error))
    except BaseException as error:  # sys.exit() in a user's module would leave the others waiting
        problem = (EXIT_FAILURE, f"{type(error).__name__}: {error}")
        LOG.exception("while preparing")
    meet(world)
    problems = [p for p in world.allgather(problem) if p is not None]
    if problems:
        raise AgreedError(*problems[0])
    return result


def agree_on_data(
    world: MPI.Intracomm, hosts: Sequence[str], sources: Mapping[str, Source]
) -> tuple[DatasetSchema, dict[str, int], tuple[str, ...] | None]:
    """Returns schema and samples of each split, and the columns of the catalogue, as all workers found them.

    hosts: of each rank. sources: what this rank has opened; {} if it is no worker.
    Collective over world.
    Raises AgreedError if workers found different data.
    """
    mine = None
    if sources:
        schema = sources["train"].schema
        counts = {split: source.num_samples for split, source in sources.items()}
        row_groups = [s.row_groups for s in sources.values() if isinstance(s, FileSource)]
        groups = hashlib.sha256(repr(row_groups).encode()).hexdigest()
        mine = (schema, counts, catalogue_columns(sources), schema.encoding, groups)
    found = {rank: each for rank, each in enumerate(world.allgather(mine)) if each is not None}
    first: int = min(found)
    expected: tuple[DatasetSchema, dict[str, int], tuple[str, ...] | None, str | None, str] = found[first]
    for rank, each in found.items():
        if each != expected:
            raise AgreedError(
                EXIT_USER,
                f"rank {rank} on {hosts[rank]} found other data than rank {first} on {hosts[first]}: "
                f"{each[1]} against {expected[1]} samples, other columns, row groups or another encoding; "
                "all embedding workers must see the same files",
            )
    return expected[:3]
