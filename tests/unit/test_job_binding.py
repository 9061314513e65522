"""When the ranks of a node are bound to cores, and when they are left as they are."""

import os
import threading
from types import SimpleNamespace

import pytest

from persia_hpc.config import load_config
from persia_hpc.job import binding
from persia_hpc.job.binding import bind_ranks
from persia_hpc.topology import cores
from persia_hpc.topology.roles import make_plan

CPUS = frozenset(os.sched_getaffinity(0))


class World:
    """Ranks of one node that all find what `rank` finds, or what `others` says."""

    def __init__(self, size, rank=0, change=lambda found: found):
        self.size, self.rank, self.change = size, rank, change
        self.calls = 0

    def allgather(self, mine):
        self.calls += 1
        if self.calls == 1:
            return self.change([mine] * self.size)
        self.decision = mine
        return [mine, *[None] * (self.size - 1)]


def bind(world, **ranks):
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": world.size - 2}
    plan = make_plan(counts, [0] * world.size)
    communicators = SimpleNamespace(
        world=world, plan=plan, me=plan.members[world.rank], hosts=("host",) * world.size
    )
    settings = {"data": {"train": "x.h5"}, "model": {"class": "dlrm"}, "ranks": {**counts, **ranks}}
    return bind_ranks(communicators, load_config(settings))


@pytest.fixture(autouse=True)
def own_claim(monkeypatch):
    """Keeps other jobs of this machine out, and this one's CPUs as they were."""
    monkeypatch.setattr(binding, "format_cpus", lambda cpus: f"test {os.getpid()}")
    yield
    binding._bind(CPUS)


@pytest.fixture
def divided(monkeypatch):
    """Lets two cores be enough for three ranks."""
    first, *rest = sorted(CPUS)
    parts = [frozenset(rest), frozenset(rest), frozenset([first])]
    monkeypatch.setattr(cores, "divide_cores", lambda *_, **__: parts)


needs_two = pytest.mark.skipif(len(CPUS) < 2 or cores.allowed_cpus() != CPUS, reason="two cores, all ours")


@needs_two
def test_a_rank_is_bound_with_all_its_threads_until_it_is_done(divided):
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        bound = bind(World(3))
        mine = frozenset(os.sched_getaffinity(0))
        assert mine < CPUS
        assert os.sched_getaffinity(thread.native_id) == mine
        assert bound.fair_threads <= len(mine)
        assert bound.text.startswith("cores: parameter_servers on ")
        bound.undo()
        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id) == CPUS
    finally:
        ended.set()
        thread.join()


@needs_two
def test_a_second_job_is_not_bound_to_the_same_cores(divided):
    first = bind(World(3))
    binding._bind(CPUS)
    second = bind(World(3))
    assert os.sched_getaffinity(0) == CPUS
    assert "another job" in second.text
    first.undo()
    third = bind(World(3))
    assert os.sched_getaffinity(0) < CPUS, third.text
    third.undo()


@pytest.mark.parametrize(
    ("change", "ranks", "reason"),
    [
        (lambda found: found, {"bind_cores": False}, "ranks.bind_cores = false"),
        (lambda found: [(0, (0,), True), *found[1:]], {}, "bound before"),
        (lambda found: [(node, cpus, False) for node, cpus, _ in found], {}, "bound before"),
    ],
)
def test_ranks_are_left_as_they_are(change, ranks, reason):
    bound = bind(World(3, change=change), **ranks)
    assert os.sched_getaffinity(0) == CPUS
    assert reason in bound.text


def test_too_many_ranks_are_not_bound():
    bound = bind(World(2 + len(CPUS)))
    assert os.sched_getaffinity(0) == CPUS
    assert f"not bound ({2 + len(CPUS)} ranks on {len(CPUS)})" in bound.text


def test_cores_that_a_launcher_gave_to_a_rank_alone_are_all_its_own():
    alone = bind(World(3, change=lambda found: [found[0], (0, (9998,), False), (0, (9999,), False)]))
    assert alone.fair_threads == len(CPUS)
