"""Stages of the cost model that have to do with cores, threads and what is in a step's way."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.config.types import ROLE_KEYS
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.costs import HIDING, Dense, count_costs
from persia_hpc.cost_model.predict import predict
from persia_hpc.cost_model.work import assumed_counts, batch_work
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import UserError
from persia_hpc.job.trial import count_batches
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from tests.unit.test_cost_model import COUNTS, SCHEMA, config_of, job_of, sample_of

ONE = dict.fromkeys(ROLE_KEYS, 1)


def stages(config, counts, cluster, **changes) -> dict[str, float]:
    job = dataclasses.replace(job_of(config, counts, cluster), **changes)
    return {stage.name: stage.seconds for stage in predict(job, cluster).stages}


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(2, 16), st.integers(1, 8))
def test_threads_of_a_server_make_no_cores(counts, threads: int, cores: int) -> None:
    cluster = Cluster(cores=cores)
    one = stages(config_of(), counts, cluster)
    many = stages(config_of(server_threads=threads), counts, cluster)
    assert many["cores of node 0"] == pytest.approx(one["cores of node 0"])
    assert one["parameter servers"] / cores <= many["parameter servers"] * 1.000001
    capped = stages(config_of(server_threads=cores), counts, cluster)
    assert many["parameter servers"] >= capped["parameter servers"] * 0.999999


def test_threads_of_the_model_take_cores_from_others() -> None:
    cluster = Cluster(cores=4)
    dense = [Dense(0.0, 1e-6, 1e6, "", whole=True, threads=threads) for threads in (1, 4)]
    one, four = (stages(config_of(), ONE, cluster, dense=d)["cores of node 0"] for d in dense)
    assert four - one == pytest.approx(3 * 4096e-6 / 4)


def test_the_optimizer_delays_the_next_step_only_where_gradients_are_sent_after_it() -> None:
    def path(amp: str, optimizer: float) -> float:
        dense = Dense(0.0, 1e-6, 1e6, "", optimizer_seconds=optimizer)
        config = config_of(mode="sync", train={"amp": amp})
        return stages(config, ONE, Cluster(cores=8), dense=dense)["one step at a time"]

    assert path("off", 1e-2) == path("off", 0.0)
    assert path("fp16", 1e-2) == pytest.approx(path("fp16", 0.0) + 1e-2)
    busy = stages(config_of(), ONE, Cluster(cores=8), dense=Dense(0.0, 0.0, 1e6, "", optimizer_seconds=1.0))
    assert busy["trainers"] > 1


@pytest.mark.parametrize("late", [{"mode": "sync"}, {"apply": "step"}])
def test_whole_steps_are_pushed_by_one_call_a_table(late) -> None:
    counts = {**ONE, "trainers": 4}
    by_batch, by_step = (count_costs(job_of(config_of(**c), counts, Cluster())) for c in ({}, late))
    job = job_of(config_of(), counts, Cluster())
    saved = 3 * job.work.num_tables * job.constants.table_call * 1e-9
    pushes = [costs.seconds["parameter_server"]["push"] for costs in (by_batch, by_step)]
    assert pushes[0] - pushes[1] == pytest.approx(saved)
    alone = [count_costs(job_of(config_of(**c), ONE, Cluster())).seconds for c in ({}, late)]
    assert alone[0]["parameter_server"] == alone[1]["parameter_server"]


def test_without_prefetching_the_request_is_in_the_way_of_a_step() -> None:
    def path(prefetch: int, **changes: float) -> float:
        data = {"train": "t.h5", "batch_size": 4096, "prefetch": prefetch}
        config = config_of(mode="sync", data=data)
        constants = dataclasses.replace(job_of(config, ONE, Cluster()).constants, **changes)
        return stages(config, ONE, Cluster(cores=8), constants=constants)["one step at a time"]

    assert path(2, dedup_id=1e3) == path(2)
    assert path(0, dedup_id=1e3) > path(0) + 4096e-6
    assert path(0, read_value=1e3) == path(0)  # a thread has read it before
    assert path(0, wake=1e9) - path(2, wake=1e9) > 1  # a hop more


def test_ids_are_read_as_stored_however_many_are_used() -> None:
    schema = DatasetSchema((FeatureSchema("a"), FeatureSchema("b", multi=True), FeatureSchema("c")), ("x",))
    sample = sample_of(np.random.default_rng(0), 500, 50)
    stored = sum(len(column.values) for column in sample.ids.values())
    works = []
    for limit in (None, 1):
        config = config_of(features={"c": {"table": "wide"}, "b": {"max_length": limit} if limit else {}})
        layout = make_layout(config, SCHEMA)
        counts = count_batches(EmbeddingWorker(layout), sample, 500)
        works.append(batch_work(config, layout, schema, 500, counts))
        again = assumed_counts(layout, tuple(n / 500 for n in counts.ids), counts.stored / 500, 0.5)(500)
        assert batch_work(config, layout, schema, 500, again).values == pytest.approx(works[-1].values)
    assert works[0].ids == stored
    assert works[1].ids < stored
    assert works[0].values == works[1].values == stored + 500 * (1 + len(schema.label_names))


def test_each_trainer_of_a_node_needs_a_gpu() -> None:
    cluster = Cluster(nodes=2, gpus=2, link_bytes=1e9, latency_seconds=0.0)
    for trainers in (4, 5):
        counts = {**ONE, "trainers": trainers}
        config = config_of(ranks=counts)
        if trainers == 4:
            assert cluster.place(config.ranks, counts).workers_of_trainer
        else:
            with pytest.raises(UserError, match="--gpus 2: node 0 would have 3 trainers"):
                cluster.place(config.ranks, counts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1e3, 1e8), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(1e7, 1e11),
    st.floats(0, 1e-4),
    st.sampled_from(["horovod", "mpi", "nccl"]),
    st.booleans(),
)
def test_backward_hides_of_allreduce_what_is_ready_and_not_more(
    buckets: list[float], share: float, link: float, latency: float, reducer: str, gpus: bool
) -> None:
    """The last sum ends when the slowest of these does: a bucket's wait for backward, and all from it on."""
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 4}
    cluster = Cluster(
        nodes=2, cores=64, gpus=2 if gpus else 0, link_bytes=link, latency_seconds=latency, cpu_nodes=1
    )
    job = job_of(config_of(train={"reducer": reducer}), counts, cluster)
    dense = Dense(1e-3, 2e-6, sum(buckets), "", buckets=tuple(buckets), backward_share=share)

    def allreduce(**changes: Any) -> float:
        changed = dataclasses.replace(job, dense=dataclasses.replace(dense, **changes))
        return predict(changed, cluster).costs.seconds["trainer"]["allreduce"]

    exposed, whole = allreduce(), allreduce(buckets=())
    backward = share * (1e-3 + 2e-6 * job.work.samples)
    overlaps = reducer == "nccl" or (reducer == "mpi" and not gpus)
    if len(buckets) < 2 or not overlaps:
        assert exposed == whole
        return
    constants = job.constants
    moved = max(
        1.5 * dense.bytes * constants.allreduce_byte * 1e-9,  # 2 (t - 1) / t of the bytes
        1.5 * dense.bytes / link,
    )
    step = 1e-9 * constants.node_sum + 2 * latency
    sizes = np.array(buckets) / sum(buckets)
    ready, left = backward * np.cumsum(sizes), np.cumsum((step + moved * sizes)[::-1])[::-1]
    after = float((ready + left).max()) - backward
    assert whole == pytest.approx(step + moved)
    assert exposed == pytest.approx(whole - HIDING[reducer] * max(0.0, whole - max(0.0, after)))
    assert whole - backward <= exposed * (1 + 1e-9) <= whole * (1 + 2e-9)


def test_sums_within_a_node_hide_nothing() -> None:
    counts = {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}
    job = job_of(config_of(train={"reducer": "mpi"}), counts, Cluster(cores=64))
    cut = dataclasses.replace(job, dense=dataclasses.replace(job.dense, buckets=(5e5, 5e5)))
    assert count_costs(cut).seconds == count_costs(job).seconds


@settings(max_examples=100, deadline=None)
@given(st.floats(1e3, 1e9), st.integers(1, 8), st.integers(1, 3), st.floats(1e7, 1e11))
def test_async_exchanges_as_often_as_changes_arrive(
    size: float, trainers: int, nodes: int, link: float
) -> None:
    """Steps are counted one by one here: the first after which the changes before have arrived exchanges."""
    counts = {"parameter_servers": nodes, "embedding_workers": nodes, "trainers": trainers * nodes}
    cluster = Cluster(nodes=nodes, cores=64, link_bytes=link, latency_seconds=0.0)
    job = job_of(config_of(mode="async"), counts, cluster)
    job = dataclasses.replace(job, dense=dataclasses.replace(job.dense, bytes=size))
    prediction = predict(job, cluster)
    phases = dict(prediction.costs.seconds["trainer"])
    shared, constants = phases.pop("allreduce"), job.constants
    if trainers * nodes == 1:
        assert shared == 0.0
        return
    step, copies = sum(phases.values()), 8e-9 * constants.copy_byte * size
    ranks = trainers if trainers > 1 else nodes
    arriving = 2e-9 * (ranks - 1) / ranks * size * constants.allreduce_byte
    if trainers == 1:
        arriving = max(arriving, 2 * (ranks - 1) / ranks * size / link)
    steps = 1  # whole ones, of which the model takes no note
    while steps * step < arriving and steps < 10_000:
        steps += 1
    if steps < 10_000:
        assert copies / steps * (1 - 1e-9) <= shared <= copies / max(1, steps - 1) * (1 + 1e-9)
    # The link doesn't bound a step: what it can't carry is sent later, with more.
    (stage,) = [s.seconds for s in prediction.stages if s.name.startswith("link")] or [0.0]
    without = dataclasses.replace(job, dense=dataclasses.replace(job.dense, bytes=0.0))
    links = [s.seconds for s in predict(without, cluster).stages if s.name.startswith("link")] or [0.0]
    assert stage == pytest.approx(links[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.floats(0, 1000), st.floats(0, 1e-2))
def test_busy_neighbours_make_a_step_longer(cores: int, crowded: float, step: float) -> None:
    counts = dict.fromkeys(ROLE_KEYS, 1)
    cluster = Cluster(cores=cores)
    job = job_of(config_of(), counts, cluster)
    dense = dataclasses.replace(job.dense, step_seconds=step)
    constants = dataclasses.replace(job.constants, crowded=crowded)
    job = dataclasses.replace(job, dense=dense, constants=constants)
    found = predict(job, cluster)
    alone = max(stage.seconds for stage in found.stages)
    computing = sum(found.costs.total(role) for role in found.costs.seconds)  # one rank of each role
    others = max(0.0, computing / alone - 1)  # cores that are busy besides that of the slowest
    share = 0.0 if cores == 1 else min(1.0, others / (cores - 1))
    assert found.step_seconds == pytest.approx(alone * (1 + crowded / 1000 * share))
    whole = dataclasses.replace(job, dense=dataclasses.replace(dense, whole=True))
    for other in (whole, dataclasses.replace(job, factors={("trainer", "push"): 1.0})):
        assert predict(other, cluster).crowding == 1
