"""Which cores each rank of a node gets, against the rules that it must keep on any machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.topology.cores import Core, describe, divide_cores, format_cpus, parse_cpus, read_cores
from persia_hpc.topology.roles import Role

SERVER, WORKER, TRAINER = Role.PARAMETER_SERVER, Role.EMBEDDING_WORKER, Role.TRAINER


def ranks(servers, workers, trainers, threads=1):
    return [(SERVER, threads)] * servers + [(WORKER, 1)] * workers + [(TRAINER, 1)] * trainers


def machine(nodes, cores, hardware_threads=1):
    """NUMA nodes of so many cores each, whose second hardware threads are numbered after all first ones."""
    total = nodes * cores
    return [Core(i // cores, tuple(i + total * t for t in range(hardware_threads))) for i in range(total)]


@given(
    nodes=st.integers(1, 4),
    cores=st.integers(1, 24),
    hardware_threads=st.integers(1, 2),
    counts=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 8)).filter(sum),
    server_threads=st.integers(1, 4),
    trainer_threads=st.none() | st.integers(1, 8),
    shuffled=st.randoms(use_true_random=False),
)
def test_every_division_keeps_trainers_apart_and_gives_everybody_a_fair_share(
    nodes, cores, hardware_threads, counts, server_threads, trainer_threads, shuffled
):
    given_cores = machine(nodes, cores, hardware_threads)
    roles = ranks(*counts, threads=server_threads)
    shuffled.shuffle(roles)
    parts = divide_cores(given_cores, roles, trainer_threads=trainer_threads)
    if parts is None:
        return
    cpus = {cpu for core in given_cores for cpu in core.cpus}
    assert len(parts) == len(roles)
    assert all(part and part <= cpus for part in parts)
    trainers = [part for part, (role, _) in zip(parts, roles, strict=True) if role is TRAINER]
    others = [part for part, (role, _) in zip(parts, roles, strict=True) if role is not TRAINER]
    taken = [cpu for part in trainers for cpu in part]
    assert len(taken) == len(set(taken)), "a core of two trainers"
    assert not set(taken) & {cpu for part in others for cpu in part}, "a trainer's core is another rank's"
    assert len({len(part) for part in trainers}) == 1
    whole = len(given_cores) >= len(roles)  # else hardware threads are divided
    units = [set(core.cpus) for core in given_cores] if whole else [{cpu} for cpu in cpus]
    for part in parts:
        assert all(unit <= part or not unit & part for unit in units), "half a core"
    share = max(1, len(units) // len(roles))
    assert all(sum(unit <= part for unit in units) >= share for part in trainers)
    if trainer_threads is not None:
        assert all(len(part) >= trainer_threads for part in trainers)
    busy = counts[0] * server_threads + counts[1]
    room = sum(unit <= set().union(*others) for unit in units) if others else 0
    assert not others or busy <= room
    node_of = {cpu: core.numa_node for core in given_cores for cpu in core.cpus}
    assert all(len({node_of[cpu] for cpu in part}) == 1 for part in others)


@pytest.mark.parametrize("trainers", [2, 4, 8])
def test_a_trainer_stays_in_one_numa_node(trainers):
    parts = divide_cores(machine(2, 16, 2), ranks(2, 2, trainers))
    assert parts is not None
    nodes = [{cpu % 32 // 16 for cpu in part} for part in parts]
    assert all(len(node) == 1 for node in nodes)
    # Trainers, servers and workers alike are spread over both; the first trainers are on the first.
    assert nodes[4:] == [{0}] * (trainers // 2) + [{1}] * (trainers // 2)
    assert sorted(map(min, nodes[:2])) == sorted(map(min, nodes[2:4])) == [0, 1]


def test_every_thread_of_servers_and_workers_needs_a_core():
    assert divide_cores(machine(1, 3), ranks(1, 1, 1)) == [{0, 1}, {0, 1}, {2}]
    assert divide_cores(machine(1, 2), ranks(1, 1, 1)) is None
    assert divide_cores(machine(1, 2, 2), ranks(1, 1, 1)) is not None, "four hardware threads"
    assert divide_cores(machine(1, 3), ranks(1, 1, 1, threads=2)) is None
    assert divide_cores(machine(1, 3), ranks(1, 1, 1), trainer_threads=2) is None, "two cores asked for"
    assert divide_cores(machine(1, 1), ranks(0, 0, 1)) == [{0}]


def test_nodes_without_trainers_are_left_alone():
    assert divide_cores(machine(1, 8), ranks(2, 2, 0)) is None


def test_servers_get_room_for_their_threads():
    parts = divide_cores(machine(1, 16), ranks(1, 1, 2, threads=7))
    assert parts == [set(range(8))] * 2 + [{8, 9, 10, 11}, {12, 13, 14, 15}]


@given(st.frozensets(st.integers(0, 300)))
def test_the_kernels_notation_is_read_as_it_is_written(cpus):
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_the_kernels_notation():
    assert format_cpus(frozenset({0, 1, 2, 3, 8, 10, 11})) == "0-3,8,10-11"
    assert parse_cpus("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}


def test_cores_are_read_from_the_system(tmp_path):
    for node, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        (tmp_path / f"node/node{node}").mkdir(parents=True)
        (tmp_path / f"node/node{node}/cpulist").write_text(cpus + "\n")
    for cpu in range(8):
        (tmp_path / f"cpu/cpu{cpu}/topology").mkdir(parents=True)
        siblings = tmp_path / f"cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert read_cores(frozenset({0, 1, 2, 4, 6}), tmp_path) == [
        Core(0, (0, 4)),
        Core(0, (1,)),
        Core(1, (2, 6)),
    ]
    assert read_cores(frozenset({3, 5}), tmp_path / "absent") == [Core(0, (3,)), Core(0, (5,))]


def test_one_line_says_who_is_where():
    parts = divide_cores(machine(1, 4), ranks(1, 1, 2))
    assert parts is not None
    of_role = {SERVER: parts[:1], WORKER: parts[1:2], TRAINER: parts[2:]}
    assert describe(of_role) == "parameter_servers on 0-1, embedding_workers on 0-1, trainers on 2 | 3"
