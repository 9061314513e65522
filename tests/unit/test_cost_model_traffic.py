"""Traffic between nodes: of all trainers' and workers' messages one by one, those that leave a node."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.constants import DEFAULTS
from persia_hpc.cost_model.costs import PATCHED
from persia_hpc.cost_model.predict import link_traffic, predict
from persia_hpc.cost_model.traffic import dense_traffic
from persia_hpc.topology.roles import Role
from tests.unit.test_cost_model import COUNTS, NODES, config_of, job_of

LINK = 1e9


def stage(config, counts, cluster, name, **changes) -> float:
    job = dataclasses.replace(job_of(config, counts, cluster), **changes)
    (seconds,) = (s.seconds for s in predict(job, cluster).stages if s.name == name)
    return seconds


def path(config, counts, cluster, **changes) -> float:
    return stage(config, counts, cluster, "one step at a time", **changes)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4))
def test_async_sends_a_nodes_changes_to_slices_owners_and_gets_slices_back(trainers: int, nodes: int) -> None:
    assume(trainers + 2 >= nodes)
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": trainers}
    cluster = Cluster(nodes=nodes, link_bytes=LINK, latency_seconds=0.0)
    job = job_of(config_of(mode="async"), counts, cluster)
    where = {m.node for m in job.plan.of(Role.TRAINER)}  # one trainer of each node exchanges
    out, into = defaultdict(float), defaultdict(float)
    for a in where:
        for b in where:
            if a != b:  # a request with the changes, an answer with the values
                for source, target in ((a, b), (b, a)):
                    out[source] += 1e6 / len(where)
                    into[target] += 1e6 / len(where)
    found = dense_traffic(job.plan, 1e6, "async")
    assert set(found) == set(out)
    for node, (sent, received) in found.items():
        assert sent == pytest.approx(out[node])
        assert received == pytest.approx(into[node])


def test_async_of_many_trainers_a_node_crosses_its_link_once() -> None:
    """Like a ring AllReduce."""
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 16}
    cluster = Cluster(nodes=2, cores=64, link_bytes=LINK, latency_seconds=0.0, cpu_nodes=1, cpu_cores=64)
    links = {
        mode: link_traffic(job_of(config_of(mode=mode), counts, cluster)) for mode in ("hybrid", "async")
    }
    # Half of the parameters go there and back; a ring has 15 of 16 parts twice.
    assert links["async"][0][0] - links["hybrid"][0][0] == pytest.approx(1e6 * (1 - 2 * 15 / 16))


@settings(max_examples=50, deadline=None)
@given(COUNTS, NODES)
def test_bytes_of_a_step_are_shared_out_over_all_messages_of_its_batches(counts, cluster) -> None:
    assume(sum(counts.values()) >= cluster.nodes)
    config = config_of()
    job = job_of(config, counts, cluster)
    plan, w = job.plan, job.work
    node = {(m.role, m.role_rank): m.node for m in plan.members}
    out = defaultdict(float)
    for trainer, workers in enumerate(plan.workers_of_trainer):
        for worker in workers:
            here, there = node[Role.EMBEDDING_WORKER, worker], node[Role.TRAINER, trainer]
            for a, b, size in ((here, there, w.feed_bytes), (there, here, w.gradient_bytes)):
                out[a] += (a != b) * size / len(workers)
            for s in range(counts["parameter_servers"]):
                server, part = node[Role.PARAMETER_SERVER, s], len(workers) * counts["parameter_servers"]
                for a, b, size in (
                    (here, server, w.key_bytes + w.gradient_bytes),
                    (server, here, w.row_bytes),
                ):
                    out[a] += (a != b) * size / part
    for number, (sent, _) in dense_traffic(plan, job.dense.bytes, "hybrid").items():
        out[number] += sent
    for number, (sent, _) in link_traffic(job).items():
        assert sent == pytest.approx(out[number])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_more_workers_than_trainers_bring_nothing_to_one_step_at_a_time(
    trainers: int, servers: int, more: int, nodes: int
) -> None:
    config = config_of(mode="sync")
    cluster = Cluster(nodes=1, cores=64, cpu_nodes=nodes, cpu_cores=64, link_bytes=LINK, latency_seconds=1e-5)
    counts = {"parameter_servers": servers, "embedding_workers": trainers, "trainers": trainers}
    assume(servers + trainers >= nodes)
    single = Cluster(cores=64)
    further = {**counts, "embedding_workers": trainers + more}
    assert path(config, further, single) == pytest.approx(path(config, counts, single))
    if nodes == 1:
        assert path(config, further, cluster) == pytest.approx(path(config, counts, cluster))
    else:  # whoever has its turn, the batch goes by one worker's link
        w = job_of(config, further, cluster).work
        carried = path(config, further, cluster) - path(
            config, further, dataclasses.replace(cluster, link_bytes=1e30)
        )
        assert carried >= (w.feed_bytes + w.gradient_bytes) / LINK * 0.999


def test_a_server_node_of_many_workers_carries_all_their_rows() -> None:
    config = config_of(mode="sync", data={"train": "t.h5", "batch_size": 4096})
    counts = {"parameter_servers": 1, "embedding_workers": 8, "trainers": 8}
    cluster = Cluster(nodes=8, cpu_nodes=9, cpu_cores=64, cores=64, link_bytes=LINK, latency_seconds=0.0)
    job = job_of(config, counts, cluster)
    w = job.work
    constants = dataclasses.replace(DEFAULTS, allreduce_byte=0.0)  # of AllReduce the link's time is left
    slow = path(config, counts, cluster, constants=constants)
    fast = path(config, counts, dataclasses.replace(cluster, link_bytes=1e30), constants=constants)
    rows_and_gradients = 8 * (w.row_bytes + w.gradient_bytes) + w.feed_bytes + w.gradient_bytes
    allreduce = 2 * 7 / 8 * job.dense.bytes  # row gradients wait for it
    assert slow - fast == pytest.approx((rows_and_gradients + allreduce) / LINK)


def test_ranks_of_one_node_are_not_in_the_way_of_a_network() -> None:
    """Servers and workers share a node, so only batches and their gradients cross the link."""
    config = config_of(mode="sync")
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}
    cluster = Cluster(nodes=1, cpu_nodes=1, cores=8, cpu_cores=8, link_bytes=LINK, latency_seconds=1e-3)
    w = job_of(config, counts, cluster).work
    between = path(config, counts, cluster) - path(config, counts, Cluster(cores=8))
    assert between == pytest.approx((w.feed_bytes + w.gradient_bytes) / LINK + 2e-3)


def test_in_fresh_only_patches_and_gradients_are_waited_for() -> None:
    """A trainer on a node of its own: its batch crossed the link before, a quarter of the rows does again."""
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}
    cluster = Cluster(nodes=1, cpu_nodes=1, cores=8, cpu_cores=8, link_bytes=LINK, latency_seconds=1e-3)
    config = config_of(mode="fresh")
    w = job_of(config, counts, cluster).work
    between = path(config, counts, cluster) - path(config, counts, Cluster(cores=8))
    assert between == pytest.approx((PATCHED * w.row_bytes + w.gradient_bytes) / LINK + 2e-3)
    job = dataclasses.replace(job_of(config, counts, cluster), link_bytes=LINK)
    sent = max(out for out, _ in link_traffic(job).values())
    assert sent == pytest.approx(max(w.feed_bytes + PATCHED * w.row_bytes, w.gradient_bytes))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["sync", "fresh"]), st.floats(0, 1), st.floats(1e-6, 1))
def test_what_needs_no_rows_hides_in_fresh_behind_the_patch(mode: str, share: float, step: float) -> None:
    """As much of it as the patch's way takes, and nothing in other modes."""
    counts, cluster = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}, Cluster(cores=8)
    job = job_of(config_of(mode=mode, staleness_bound=0), counts, cluster)

    def seconds(ahead: float) -> float:
        dense = dataclasses.replace(job.dense, step_seconds=step, sample_seconds=0.0, ahead_share=ahead)
        stages = predict(dataclasses.replace(job, dense=dense), cluster).stages
        return next(s.seconds for s in stages if s.name == "one step at a time")

    none, some, whole = seconds(0), seconds(share), seconds(1)
    hidden = min(share * step, none - whole) if mode == "fresh" else 0
    assert none - some == pytest.approx(hidden, abs=1e-9)
    assert none == whole or mode == "fresh"


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, PATCHED),
        ({"tables": {"default": {}, "wide": {"dim": 32, "eviction": "lfu"}}}, 1),
        ({"tables": {"default": {"ttl": 9}, "wide": {"dim": 32}}}, 1),
        ({"tables": {"default": {"admission": {"after": 2}}, "wide": {"dim": 32}}}, 1),
        ({"tables": {"default": {"disk": {"path": "/d", "capacity": "1 GiB"}}, "wide": {"dim": 32}}}, 1),
        ({"export": {"dir": "e", "every_seconds": 1.0}}, 1),
    ],
)
def test_in_fresh_servers_on_other_nodes_get_the_gradients_first_that_patches_wait_for(
    settings: dict, share: float
) -> None:
    """Each rank has a node of its own. That is so where no other row may differ."""
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}
    cluster = Cluster(nodes=1, cpu_nodes=2, cores=8, cpu_cores=8, link_bytes=LINK, latency_seconds=1e-3)
    config = config_of(mode="fresh", **settings)
    w = job_of(config, counts, cluster).work
    between = path(config, counts, cluster) - path(config, counts, Cluster(cores=8))
    waited = 2 * PATCHED * w.row_bytes + (1 + share) * w.gradient_bytes
    assert between == pytest.approx(waited / LINK + 4e-3)


def test_a_worker_whose_turn_it_is_carries_the_whole_batch_over_its_link() -> None:
    config = config_of(mode="sync")
    paths = []
    for workers in (1, 2):
        counts = {"parameter_servers": 3, "embedding_workers": workers, "trainers": 1}
        cluster = Cluster(
            cores=8, cpu_nodes=3 + workers, cpu_cores=8, link_bytes=LINK / 1e3, latency_seconds=0.0
        )
        paths.append(path(config, counts, cluster))
    assert paths[0] == pytest.approx(paths[1])
