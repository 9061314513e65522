"""Describes the ranks that share a preprocessing: one process alone, or an MPI job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from persia_hpc.errors import PersiaError, UserError

Result = TypeVar("Result")


class Team(Protocol):
    """Connects the ranks that share the work; all make the same calls in the same order.

    connected: the ranks can exchange values
    shows: this rank shows its progress
    """

    rank: int
    size: int
    connected: bool
    shows: bool

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's value, on every rank.

        Collective over the team.
        """

    def exchange(self, values: list[Any]) -> list[Any]:
        """Sends values[r] to rank r and returns what each rank sent to this one.

        Collective over the team.
        """

    def need_all(self, what: str) -> None:
        """Checks that the ranks are connected, which `what` depends on.

        Raises UserError if they aren't.
        """


class OneMember:
    """Does all the work in a single process. See `Team`."""

    rank = 0
    size = 1
    connected = True
    shows = True

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def exchange(self, values: list[Any]) -> list[Any]:
        return values

    def need_all(self, what: str) -> None:
        pass


ONE_MEMBER = OneMember()


class Part(OneMember):
    """Does one process's part of the work without communicating, like a task of a job array.

    See `Team`.
    """

    connected = False

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def need_all(self, what: str) -> None:
        raise UserError(
            f"--part {self.rank}/{self.size}: {what} needs all rows of the input, expected ranks that know "
            "of each other; start all with mpiexec or srun, without --part"
        )


class Ranks:
    """Connects the ranks of an mpi4py communicator. See `Team`."""

    connected = True

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.shows = self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        return list(self._comm.allgather(value))

    def exchange(self, values: list[Any]) -> list[Any]:
        return list(self._comm.alltoall(values))

    def need_all(self, what: str) -> None:
        pass


def shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Returns the items that each of `count` ranks takes, so that the sums of their sizes are about equal.

    The largest item goes first, each to the rank with the least.
    """
    taken: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        taken[least].append(item)
        loads[least] += sizes[item]
    return [sorted(items) for items in taken]


def share_of(team: Team, sizes: Sequence[int], wanted: Collection[int]) -> list[int]:
    """Returns which of the `wanted` items this rank takes; all connected ranks must want the same items."""
    if not team.connected:  # others may want other items by now: each has its own for good
        return sorted(set(shares(sizes, team.size)[team.rank]).intersection(wanted))
    items = sorted(wanted)
    return [items[k] for k in shares([sizes[i] for i in items], team.size)[team.rank]]


def once(team: Team, work: Callable[[], Result]) -> Result:
    """Runs `work` on rank 0 and returns its result (pickled) on all ranks; unconnected ranks each run it.

    Collective over `team`.
    Raises UserError or PersiaError as `together` does.
    """
    if not team.connected:
        return work()
    result = together(team, lambda: work() if team.rank == 0 else None)
    found: Result = team.gather(result)[0]
    return found


def together(team: Team, work: Callable[[], Result]) -> Result:
    """Runs `work` on each rank and returns its own result; if it fails on one rank, all raise.

    Collective over `team`.
    Raises UserError for bad input, PersiaError for any other failure (such as a full disk).
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is: the others must not wait in vain
        problem = error
    mine = None if problem is None else (isinstance(problem, UserError), str(problem) or repr(problem))
    for found in team.gather(mine):
        if found is not None:
            raise (UserError if found[0] else PersiaError)(found[1]) from problem
    return result
