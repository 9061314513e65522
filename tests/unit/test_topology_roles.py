"""The plan of roles: counts, node-awareness, refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.topology.roles import FEED_PLANE, ROW_PLANE, Role, make_plan, parse_roles
from persia_hpc.topology.sharding import bucket_bounds


def counts(servers, workers, trainers):
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_every_rank_has_one_role_and_every_trainer_is_fed(servers, workers, trainers, random, num_nodes):
    total = servers + workers + trainers
    nodes = [random.randrange(num_nodes) for _ in range(total)]
    plan = make_plan(counts(servers, workers, trainers), nodes)
    assert [m.world_rank for m in plan.members] == list(range(total))
    assert [m.node for m in plan.members] == nodes
    assert [plan.count(r) for r in (Role.PARAMETER_SERVER, Role.EMBEDDING_WORKER, Role.TRAINER)] == [
        servers,
        workers,
        trainers,
    ]
    for role in Role:
        assert sorted(m.role_rank for m in plan.of(role)) == list(range(plan.count(role)))
    for rank_of, roles in ((plan.row_rank, ROW_PLANE), (plan.feed_rank, FEED_PLANE)):
        for role in roles:
            for i, rank in enumerate(plan.ranks(role)):
                assert plan.members[rank].role_rank == i
                assert plan.plane(roles)[rank_of(role, i)] == rank
    feeds = plan.workers_of_trainer
    assert len(feeds) == trainers
    assert all(feeds)
    assert {w for each in feeds for w in each} == set(range(workers))  # nobody is idle


@given(st.integers(1, 3), st.integers(1, 3))
def test_trainers_spread_evenly_and_are_fed_by_their_own_node(num_nodes, per_node):
    nodes = [n for n in range(num_nodes) for _ in range(2 + per_node)]
    plan = make_plan(counts(num_nodes, num_nodes, num_nodes * per_node), nodes)
    for node in range(num_nodes):
        here = [m for m in plan.members if m.node == node]
        assert sum(m.role is Role.TRAINER for m in here) == per_node
    node_of = {m.role_rank: m.node for m in plan.of(Role.EMBEDDING_WORKER)}
    if all(any(m.node == n for m in plan.of(Role.EMBEDDING_WORKER)) for n in range(num_nodes)):
        for trainer in plan.of(Role.TRAINER):
            assert all(node_of[w] == trainer.node for w in plan.workers_of_trainer[trainer.role_rank])


def test_per_node_counts():
    plan = make_plan(counts(1, 1, 2), [0, 0, 0, 0, 1, 1, 1, 1], per_node=True)
    assert [m.role for m in plan.members[:4]] == [m.role for m in plan.members[4:]]
    with pytest.raises(UserError, match="node 1 has 3 ranks"):
        make_plan(counts(1, 1, 2), [0, 0, 0, 0, 1, 1, 1], per_node=True)


@pytest.mark.parametrize("ranks", [2, 4])
def test_wrong_world_size_is_refused_with_the_fix(ranks):
    with pytest.raises(UserError, match=rf"job has {ranks} ranks.*= 3.*-n 3"):
        make_plan(counts(1, 1, 1), [0] * ranks)


@given(st.integers(0, 12), st.integers(1, 9))
def test_bucket_bounds_partition(exponent, num_servers):
    bounds = bucket_bounds(1 << exponent, num_servers)
    sizes = [b - a for a, b in pairwise(bounds)]
    assert bounds[0] == 0
    assert bounds[-1] == 1 << exponent
    assert max(sizes) - min(sizes) <= 1


SERVERS_AND_WORKERS = parse_roles("parameter_servers, embedding_workers")
TRAINERS = parse_roles("trainers")


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.permutations(range(10)), st.integers(1, 3))
def test_components_have_only_their_roles(servers, workers, trainers, order, num_nodes):
    total = servers + workers + trainers
    allowed = [SERVERS_AND_WORKERS] * (servers + workers) + [TRAINERS] * trainers
    allowed = [allowed[i] for i in order if i < total]
    nodes = [i % num_nodes for i in range(total)]  # also components that share a node
    plan = make_plan(counts(servers, workers, trainers), nodes, allowed=allowed)
    assert [m.world_rank for m in plan.members] == list(range(total))
    assert [m.node for m in plan.members] == nodes
    assert all(m.role in may for m, may in zip(plan.members, allowed, strict=True))
    for role, count in zip(Role, (servers, workers, trainers), strict=True):
        assert sorted(m.role_rank for m in plan.of(role)) == list(range(count))
    assert all(plan.workers_of_trainer)


def test_everything_allowed_is_the_plan_without_components():
    nodes = [0, 0, 0, 1, 1, 1]
    free = make_plan(counts(2, 2, 2), nodes, allowed=[parse_roles("")] * 6)
    assert free == make_plan(counts(2, 2, 2), nodes)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([SERVERS_AND_WORKERS] * 3, "lets no components of the job have trainers"),
        ([SERVERS_AND_WORKERS, TRAINERS, parse_roles("")], "each role belongs to exactly one"),
        (
            [SERVERS_AND_WORKERS, TRAINERS, TRAINERS],
            r"for 1 parameter_server \+ 1 embedding_worker has 1 ranks",
        ),
    ],
)
def test_components_that_do_not_fit_are_refused(allowed, message):
    with pytest.raises(UserError, match=message):
        make_plan(counts(1, 1, 1), [0, 0, 0], allowed=allowed)


def test_components_exclude_counts_per_node():
    with pytest.raises(UserError, match=r"ranks\.per_node"):
        make_plan(counts(1, 1, 1), [0, 0, 1], per_node=True, allowed=[SERVERS_AND_WORKERS] * 2 + [TRAINERS])


def test_wrong_names_of_roles_are_refused():
    with pytest.raises(
        UserError, match="names 'trainer', which is no role; expected some of parameter_servers"
    ):
        parse_roles("trainer")
