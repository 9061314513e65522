"""The cost model: its bytes are those that engines pack, and its times behave as times of a pipeline must."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull
from persia_hpc.config import load_config
from persia_hpc.config.types import ROLE_KEYS, RanksConfig
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.constants import DEFAULTS, NAMES, constants_text, load_constants
from persia_hpc.cost_model.costs import Dense, Job, count_costs
from persia_hpc.cost_model.memory import Room, node_memory, role_memory
from persia_hpc.cost_model.predict import link_traffic, predict
from persia_hpc.cost_model.work import assumed_counts, batch_work
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import UserError
from persia_hpc.job.trial import count_batches
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.protocol.row_batch import pack_row_batch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout, server_bytes
from persia_hpc.topology.channels import fitting, ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import ROLE_ORDER

SCHEMA = DatasetSchema(
    (FeatureSchema("a"), FeatureSchema("b", multi=True, mean_length=3.0), FeatureSchema("c")), ("x", "y")
)


def config_of(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "data": {"train": "t.h5", "batch_size": 4096},
        "tables": {"default": {"dim": 16}, "wide": {"dim": 32, "optimizer": "rowwise_adagrad"}},
        "features": {"c": {"table": "wide"}},
        "model": {"class": "dlrm"},
        **changes,
    }
    return load_config(values)


def sample_of(generator: np.random.Generator, samples: int, vocabulary: int) -> SampleBatch:
    def ids(count: int) -> np.ndarray:
        return generator.integers(vocabulary, size=count).astype(np.uint64)

    lengths = generator.integers(0, 7, samples)
    return SampleBatch(
        {
            "a": IdColumn(ids(samples)),
            "b": IdColumn.from_lengths(ids(int(lengths.sum())), lengths),
            "c": IdColumn(ids(samples)),
        },
        np.zeros((samples, 2), np.float32),
        np.zeros((samples, 1), np.float32),
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2000),
    st.integers(1, 300_000),
    st.sampled_from(sorted(WIRES)),
    st.sampled_from(sorted(WIRES)),
    st.sampled_from(["fp32", "fp16"]),
)
def test_bytes_are_those_of_the_engines(
    samples: int, vocabulary: int, rows: str, gradients: str, storage: str
) -> None:
    config = config_of(
        wire={"rows": rows, "gradients": gradients},
        tables={"default": {"dim": 16, "storage": storage}, "wide": {"dim": 32, "optimizer": "adam"}},
    )
    layout = make_layout(config, SCHEMA)
    worker, server = EmbeddingWorker(layout), ParameterServer(config, layout)
    server.clock.begin_segment(1, 1)
    sample = sample_of(np.random.default_rng(samples), samples, vocabulary)
    counts = count_batches(worker, sample, samples)
    work = batch_work(config, layout, SCHEMA, samples, counts)

    batch = worker.prepare(sample, step=1, trainer=0, num_global=samples)
    request = worker.request(batch)
    keys, numbers = request.keys.part(0), request.counts.part(0)
    shapes = server.row_shapes(numbers)
    out = [np.zeros(WIRES[rows].shape(*shape), WIRES[rows].dtype) for shape in shapes]
    server.submit_pull(PendingPull(1, 0, keys, numbers))
    for pull in server.ready_pulls():
        server.answer(pull, out)
    worker.add_rows(batch, 0, out)
    row_batch = worker.assemble(batch)
    packed = sum(
        a.nbytes for item in pack_row_batch(row_batch) for a in (item if isinstance(item, list) else [item])
    )
    assert work.key_bytes == keys.nbytes
    assert work.row_bytes == sum(o.nbytes for o in out)
    assert work.gradient_bytes == sum(
        WIRES[gradients].dtype.itemsize * np.prod(WIRES[gradients].shape(*shape)) for shape in shapes
    )
    assert 0 <= packed - work.feed_bytes < 100  # header and offsets, however large the batch
    tables = [t for t in server.tables if t is not None]
    assert work.updated_bytes == sum(t.num_rows * t.row_bytes for t in tables)
    assert work.ids == len(row_batch.indices)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.integers(1, 150))
def test_counts_are_means_over_batches(samples: int, size: int) -> None:
    layout = make_layout(config_of(), SCHEMA)
    sample = sample_of(np.random.default_rng(samples), samples, 50)
    counts = count_batches(EmbeddingWorker(layout), sample, size)
    used = min(size, samples)
    parts = [sample.slice(b, b + used) for b in range(0, samples - used + 1, used)]
    for table in layout.tables:
        name = {"wide": "c"}.get(table.name, table.name)
        unique = np.mean([len(np.unique(p.ids[name].values)) for p in parts])
        assert counts.rows[layout.tables.index(table)] == pytest.approx(unique * size / used)
    assert counts.ids[0] == pytest.approx(size)


def job_of(config: Any, counts: dict[str, int], cluster: Cluster, **changes: Any) -> Job:
    layout = make_layout(config, SCHEMA)
    samples = config.data.batch_size / counts["trainers"]
    work = batch_work(
        config, layout, SCHEMA, samples, assumed_counts(layout, (1.0, 3.0, 1.0), 5.0, 0.4)(samples)
    )
    dense = Dense(1e-4, 2e-6, 1e6, "assumed")
    return Job(config, layout, cluster.place(config.ranks, counts), work, dense, CONSTANTS, **changes)


def speed(config: Any, counts: dict[str, int], cluster: Cluster, **changes: Any) -> float:
    return predict(job_of(config, counts, cluster, **changes), cluster).samples_per_second


CONSTANTS = dataclasses.replace(DEFAULTS, crowded=200.0)
COUNTS = st.builds(
    lambda *n: dict(zip(ROLE_KEYS, n, strict=True)), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)
)
NODES = st.builds(
    Cluster,
    nodes=st.integers(1, 3),
    cores=st.integers(1, 64),
    link_bytes=st.floats(1e7, 1e11),
    latency_seconds=st.floats(0, 1e-4),
)


@settings(max_examples=100, deadline=None)
@given(COUNTS, NODES, st.integers(0, 16))
def test_better_machines_and_looser_bounds_are_never_slower(
    counts: dict[str, int], cluster: Cluster, bound: int
) -> None:
    assume(sum(counts.values()) >= cluster.nodes)
    config = config_of(staleness_bound=bound)

    def check(slow: float, fast: float) -> None:
        assert fast >= (1 - 1e-12) * slow  # sums are rounded

    now = speed(config, counts, cluster)
    check(now, speed(config, counts, dataclasses.replace(cluster, cores=cluster.cores + 1)))
    check(now, speed(config, counts, dataclasses.replace(cluster, link_bytes=2 * cluster.link_bytes)))
    check(now, speed(config, counts, dataclasses.replace(cluster, latency_seconds=0.0)))
    check(now, speed(dataclasses.replace(config, staleness_bound=bound + 1), counts, cluster))
    whole_steps = speed(dataclasses.replace(config, apply="step"), counts, cluster)
    check(speed(dataclasses.replace(config, mode="sync"), counts, cluster), whole_steps)
    check(speed(config, counts, cluster, new_rows=0.5), now)


@settings(max_examples=50, deadline=None)
@given(COUNTS, NODES)
def test_the_bottleneck_alone_is_always_busy(counts: dict[str, int], cluster: Cluster) -> None:
    assume(sum(counts.values()) >= cluster.nodes)
    prediction = predict(job_of(config_of(), counts, cluster), cluster)
    assert 1 <= prediction.crowding <= 1.2
    # A link is as fast however busy cores are.
    assert prediction.step_seconds == max(
        stage.seconds * (1 if stage.name.startswith("link") else prediction.crowding)
        for stage in prediction.stages
    )
    assert prediction.samples_per_second == pytest.approx(4096 / prediction.step_seconds)
    assert cluster.cores > 1 or prediction.crowding == 1


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 8), st.sampled_from(["hybrid", "sync", "fresh", "async"]))
def test_a_machine_of_half_the_speed_takes_twice_as_long(
    counts: dict[str, int], cores: int, mode: str
) -> None:
    config, cluster = config_of(mode=mode), Cluster(cores=cores)
    job = job_of(config, counts, cluster)
    times = [name for name in NAMES if name != "crowded"]  # that is a ratio
    slow = dataclasses.replace(CONSTANTS, **{name: 2 * getattr(DEFAULTS, name) for name in times})
    dense = dataclasses.replace(
        job.dense, step_seconds=2 * job.dense.step_seconds, sample_seconds=2 * job.dense.sample_seconds
    )
    half = predict(dataclasses.replace(job, constants=slow, dense=dense), cluster)
    assert half.step_seconds == pytest.approx(2 * predict(job, cluster).step_seconds)


@settings(max_examples=50, deadline=None)
@given(COUNTS, NODES)
def test_what_leaves_a_node_enters_another(counts: dict[str, int], cluster: Cluster) -> None:
    assume(sum(counts.values()) >= cluster.nodes)
    links = link_traffic(job_of(config_of(), counts, cluster))
    out, into = (sum(rates) for rates in zip(*links.values(), strict=True))
    assert out == pytest.approx(into)
    assert (out == 0) == (cluster.nodes == 1)


def test_traffic_of_roles_on_nodes_of_their_own() -> None:
    cluster = Cluster(nodes=1, cpu_nodes=2, link_bytes=1e9, latency_seconds=1e-6)
    job = job_of(config_of(), dict.fromkeys(ROLE_KEYS, 1), cluster)
    w, links = job.work, link_traffic(job)
    assert [m.node for role in ROLE_ORDER for m in job.plan.of(role)] == [2, 1, 0]
    assert links[0] == (w.gradient_bytes, w.feed_bytes)
    assert links[2] == (w.row_bytes, w.key_bytes + w.gradient_bytes)


def test_servers_share_their_work_and_a_worker_for_two_trainers_has_twice_as_much() -> None:
    config, cluster = config_of(), Cluster()
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}
    free = dataclasses.replace(DEFAULTS, table_call=0.0, server_batch=0.0)

    def costs(**changes: int) -> Any:
        job = job_of(config, {**counts, **changes}, cluster)
        return count_costs(dataclasses.replace(job, constants=free)).seconds

    one, two, workers = costs(), costs(parameter_servers=2), costs(embedding_workers=2)
    assert two["parameter_server"]["pull"] == pytest.approx(one["parameter_server"]["pull"] / 2)
    assert workers["embedding_worker"]["dedup"] == pytest.approx(one["embedding_worker"]["dedup"] / 2)
    assert workers["trainer"] == one["trainer"]


def test_measured_phases_take_the_place_of_modelled_ones() -> None:
    job = job_of(config_of(), dict.fromkeys(ROLE_KEYS, 1), Cluster())
    bare = count_costs(job).seconds["parameter_server"]
    costs = count_costs(dataclasses.replace(job, factors={("parameter_server", "pull"): 3.0}))
    assert costs.seconds["parameter_server"] == {**bare, "pull": pytest.approx(3 * bare["pull"])}


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(1, 3), st.integers(0, 3))
def test_ranks_are_spread_evenly_over_the_nodes_of_their_roles(
    counts: dict[str, int], nodes: int, cpu_nodes: int
) -> None:
    trainers = counts["trainers"]
    assume(sum(counts.values()) >= nodes if not cpu_nodes else trainers >= nodes)
    assume(sum(counts.values()) - trainers >= cpu_nodes)
    plan = Cluster(nodes=nodes, cpu_nodes=cpu_nodes).place(RanksConfig(**counts), counts)
    assert {f"{r.value}s": plan.count(r) for r in ROLE_ORDER} == counts
    for here in (range(nodes), range(nodes, nodes + cpu_nodes)):
        sizes = [sum(m.node == node for m in plan.members) for node in here]
        assert not sizes or max(sizes) - min(sizes) <= 1
        if cpu_nodes:
            roles = {m.role.value for m in plan.members if m.node in here}
            assert ("trainer" in roles) == (here.start == 0)


@pytest.mark.parametrize(
    ("cluster", "part"),
    [
        (Cluster(nodes=0), "--nodes 0: expected"),
        (Cluster(cores=0), "--cores 0"),
        (Cluster(nodes=2), "2 nodes, but no --link"),
        (Cluster(nodes=1, cpu_nodes=1, link_bytes=1e9), "no --latency"),
        (Cluster(link_bytes=-1.0), "--link: got -1"),
        (Cluster(link_bytes=float("nan")), "--link: got nan"),
    ],
)
def test_machines_that_cannot_be_are_refused(cluster: Cluster, part: str) -> None:
    with pytest.raises(UserError, match=part):
        cluster.check()


@settings(max_examples=20, deadline=None)
@given(COUNTS)
def test_memory_of_nodes_is_that_of_their_ranks(counts: dict[str, int]) -> None:
    job = job_of(config_of(), counts, Cluster())
    memory = role_memory(
        job.config, job.layout, SCHEMA, job.plan, job.work, num_samples=100_000, dense_bytes=1e6
    )
    assert sum(node_memory(job.plan, memory).values()) == sum(
        sum(parts.values()) * job.plan.count(role) for role, parts in memory.items()
    )
    tables = server_bytes(job.config, job.layout, counts["parameter_servers"])
    every = sum(t.config.capacity_bytes for t in job.layout.tables)
    assert 0.97 * every <= tables * counts["parameter_servers"] <= 1.2 * every


@settings(max_examples=20, deadline=None)
@given(COUNTS, st.integers(64 << 20, 16 << 30))
def test_rings_are_those_that_the_nodes_have_room_for(counts: dict[str, int], room: int) -> None:
    """The rings that a job would make there, as `channels.fitting` has it."""
    job = job_of(config_of(data={"train": "t.h5", "batch_size": 1 << 20}), counts, Cluster())
    nodes = dict.fromkeys({m.node for m in job.plan.members}, room)

    def rings(room: Room | None) -> int:
        memory = role_memory(
            job.config, job.layout, SCHEMA, job.plan, job.work, num_samples=9, dense_bytes=9, room=room
        )
        return sum(parts["rings"] for parts in memory.values())

    wanted = ring_sizes(
        job.config,
        job.layout,
        SCHEMA,
        num_servers=counts["parameter_servers"],
        num_trainers=counts["trainers"],
    )
    made = ring_memory(job.plan, fitting(job.plan, wanted, nodes))[1]
    assert rings(Room(nodes, nodes)) == sum(max(made[r] for r in job.plan.ranks(role)) for role in ROLE_ORDER)
    assert rings(Room(nodes, nodes)) <= rings(None)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.floats(1e-3, 1e9))
def test_constants_survive_their_file(tmp_path_factory: Any, machine: str, value: float) -> None:
    path = tmp_path_factory.mktemp("constants") / "c.toml"
    constants = dataclasses.replace(DEFAULTS, machine=machine, dedup_id=value)
    path.write_text(constants_text(constants), encoding="utf-8")
    again = load_constants(path)
    assert again.machine == machine
    assert again.dedup_id == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("dedup_id", "dedup_di"), "dedup_di"),
        (("dedup_id = ", "dedup_id = -"), "dedup_id = -.*expected nanoseconds, 0 or more"),
        (("[nanoseconds]", "[seconds]"), r"expected `machine` and a table \[nanoseconds\]"),
        (("machine", "[machine"), "is not TOML"),
    ],
)
def test_other_files_are_no_constants(tmp_path: Any, change: tuple[str, str], part: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(constants_text(DEFAULTS).replace(*change))
    with pytest.raises(UserError, match=part):
        load_constants(path)


def test_allreduce_delays_the_next_step_except_where_there_is_none() -> None:
    """Row gradients are sent when it has shown that all gradients are finite."""
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}

    def path(mode: str, amp: str, gpus: int, **changes: float) -> float:
        bound = {} if mode == "sync" else {"staleness_bound": 0}
        config = config_of(mode=mode, train={"amp": amp}, **bound)
        cluster = Cluster(cores=64, gpus=gpus)
        job = job_of(config, counts, cluster)
        constants = dataclasses.replace(CONSTANTS, **changes)
        stages = predict(dataclasses.replace(job, constants=constants), cluster).stages
        (seconds,) = (stage.seconds for stage in stages if stage.name == "one step at a time")
        return seconds

    for mode, amp, gpus, more in (
        ("sync", "off", 0, 3e-3),
        ("sync", "fp16", 0, 3e-3),
        ("sync", "off", 2, 3e-3),
        ("async", "off", 0, 0.0),
    ):
        slow, fast = (path(mode, amp, gpus, allreduce_step=step) for step in (5e6, 2e6))
        assert slow - fast == pytest.approx(more)


def test_sums_in_shared_memory_cost_no_cycle_and_narrow_gradients_half_the_bytes() -> None:
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}

    def seconds(mode: str = "hybrid", **train: str) -> tuple[float, float]:
        job = job_of(config_of(mode=mode, train=train), counts, Cluster(cores=64))
        costs = count_costs(job)
        return costs.seconds["trainer"]["allreduce"], costs.allreduce_wait

    moved = 1e-9 * DEFAULTS.allreduce_byte * job_of(config_of(), counts, Cluster(cores=64)).dense.bytes
    cycle, waits = 1e-9 * DEFAULTS.allreduce_step, 1e-9 * (DEFAULTS.allreduce_step - DEFAULTS.allreduce_cpu)
    assert seconds() == pytest.approx((cycle + moved, waits))
    assert seconds(reducer="mpi") == pytest.approx((1e-9 * DEFAULTS.node_sum + moved, 0.0))
    assert seconds(dense_wire="fp16") == pytest.approx((cycle + moved / 2, waits))
    copies = 1e-9 * 8 * DEFAULTS.copy_byte * 1e6  # `async` sends float32, and waits for nothing
    assert seconds("async", reducer="mpi", dense_wire="fp16") == pytest.approx((copies, -moved))
