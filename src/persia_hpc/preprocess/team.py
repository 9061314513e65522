"""The ranks that share a preprocessing: one process alone, or an MPI job."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from persia_hpc.errors import PersiaError, UserError

Result = TypeVar("Result")


class Team(Protocol):
    """All ranks make the same calls in the same order. `connected`: they know of each other. `shows`: this
    one shows how far it is.
    """

    rank: int
    size: int
    connected: bool
    shows: bool

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank. Collective."""

    def exchange(self, values: list[Any]) -> list[Any]:
        """values[r] goes to rank r; what each rank sent to this one. Collective."""

    def need_all(self, what: str) -> None:
        """UserError where `what` can't be had because a part of the work knows nothing of the others."""


class OneMember:
    """A single process."""

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
    """One of several processes that share the work without talking, as the tasks of a job array."""

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
    """The ranks of a communicator (mpi4py)."""

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
    """Which items each of `count` ranks takes, about equal in size: the largest first, to who has least."""
    taken: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        taken[least].append(item)
        loads[least] += sizes[item]
    return [sorted(items) for items in taken]


def share_of(team: Team, sizes: Sequence[int], wanted: Collection[int]) -> list[int]:
    """Which of the `wanted` items this rank takes; all connected ranks want the same."""
    if not team.connected:  # others may want other items by now: each has its own for good
        return sorted(set(shares(sizes, team.size)[team.rank]).intersection(wanted))
    items = sorted(wanted)
    return [items[k] for k in shares([sizes[i] for i in items], team.size)[team.rank]]


def once(team: Team, work: Callable[[], Result]) -> Result:
    """What `work` gives to one rank, for all (pickled), where they know of each other. Collective; raises as
    `together`.
    """
    if not team.connected:
        return work()
    result = together(team, lambda: work() if team.rank == 0 else None)
    found: Result = team.gather(result)[0]
    return found


def together(team: Team, work: Callable[[], Result]) -> Result:
    """What `work` gives on each rank. If it can't be done on one of them, all raise: UserError for bad
    input, PersiaError for what else may happen (a full disk). Collective.
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
