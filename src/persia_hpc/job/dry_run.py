"""Says what a job would do, without starting it: the plan, memory of each rank, one step of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from persia_hpc.config import Config, config_text, mib
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import Source
from persia_hpc.table_layout import Layout, server_bytes
from persia_hpc.topology.channels import ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Plan, Role, make_plan
from persia_hpc.trainer.session import Session

from .local_stream import LocalStream
from .trial import Trial


def dry_run(config: Config) -> str:
    """Returns configuration, plan, tables, memory and what one step did, as text. Writes no file.

    The step is a whole one, forward to update, on empty tables of this process.
    Raises UserError for bad input, and for a model, loss or optimizer that fails.
    """
    trial = Trial(config)
    sources, schema, layout, session = trial.sources, trial.schema, trial.layout, trial.session
    counts = config.ranks.counts()
    plan = make_plan(counts, [0] * sum(counts.values()))
    first = trial.first_batch()
    trial.steps(1)
    lines = [
        config_text(config),
        "plan (of one node):" if config.ranks.per_node else "plan:",
        "  " + plan.table(["this node"] * len(plan.members)),
        "tables:",
        *_tables(layout, schema, trial.stream),
        "memory, beside the programs and their libraries:",
        *_memory(config, layout, plan, sources, first, session),
        "data:",
    ]
    for split, schedule in trial.schedules.items():
        lines.append(
            f"  {split}: {schedule.num_samples} samples, {schedule.num_steps} steps of {schedule.batch_size}"
        )
    if config.data.follow:
        lines.append("  train: and whatever new files bring (data.follow)")
    lines.append(
        f"first step: {first.num_samples} samples, {len(first.indices)} ids, "
        f"{int(first.dim_group_offsets[-1])} unique rows, loss {float(session.loss):.4g}"
    )
    return "\n".join(lines)


def _tables(layout: Layout, schema: DatasetSchema, stream: LocalStream) -> list[str]:
    lines = []
    for spec, table in zip(layout.tables, stream.server.tables, strict=True):
        assert table is not None
        hashing = spec.config.hash
        users = []
        for feature in (f for f in layout.features if layout.tables[f.table] is spec):
            stored = schema.feature(feature.name)
            if not stored.multi:
                users.append(feature.name)
                continue
            known = "unknown" if stored.mean_length is None else f"{stored.mean_length:.3g}"
            limit = f"at most {feature.max_length}" if feature.max_length else "no max_length"
            if not feature.max_length and stored.mean_length is None:
                limit += ": whether the table has room for a step can't be known"
            users.append(f"{feature.name} (ids a sample: {known} on average, {limit})")
        lines.append(
            f"  {spec.name}: dim {spec.dim}, {table.row_bytes} bytes a row, at most {spec.capacity_rows} "
            f"rows in {spec.num_buckets} buckets ({mib(spec.config.capacity_bytes)} over all servers"
            + (f"; ids hashed to {hashing.rounds} x {hashing.size} rows" if hashing else "")
            + f"); features: {', '.join(users)}"
        )
    return lines


def _memory(
    config: Config,
    layout: Layout,
    plan: Plan,
    sources: Mapping[str, Source],
    first: RowBatch,
    session: Session,
) -> list[str]:
    """Lists for each role what its largest rank holds."""
    size = ring_sizes(
        config,
        layout,
        sources["train"].schema,
        num_servers=plan.count(Role.PARAMETER_SERVER),
        num_trainers=plan.count(Role.TRAINER),
    )
    rings = ring_memory(plan, size)[1]
    tables = server_bytes(layout, plan.count(Role.PARAMETER_SERVER))
    owns = {
        Role.PARAMETER_SERVER: {"tables, when full": tables},
        Role.EMBEDDING_WORKER: {"shuffled samples": _reader_bytes(config, sources, first)},
        Role.TRAINER: {"model, gradients and optimizer": _dense_bytes(session)},
    }
    lines, total = [], 0
    for role, parts in owns.items():
        own = {**parts, "rings": max(rings[r] for r in plan.ranks(role))}
        total += sum(parts.values()) * plan.count(role)
        each = sum(own.values())
        listed = " + ".join(f"{mib(size)} {what}" for what, size in own.items())
        lines.append(f"  each of {plan.count(role)} {role.value}s: {mib(each)} = {listed}")
    lines.append(
        f"  all ranks{' of a node' if config.ranks.per_node else ''}: {mib(total + sum(rings))}, of which "
        f"{mib(sum(rings))} are rings, in shared memory (/dev/shm) between ranks of one node"
    )
    return lines


def _reader_bytes(config: Config, sources: Mapping[str, Source], first: RowBatch) -> int:
    """Returns the bytes of one window of samples in memory, estimated by the first batch."""
    arrays = [first.dense, first.labels, *first.bag_offsets.values()]
    arrays += [a for a in (first.weight, first.group) if a is not None]
    per_sample = (sum(a.nbytes for a in arrays) + 8 * len(first.indices)) / first.num_samples
    rows = min(config.data.block_rows * config.data.buffer_blocks, sources["train"].num_samples)
    return int(per_sample * rows)


def _dense_bytes(session: Session) -> int:
    """Returns the bytes of parameters, buffers, gradients and, after a step, the optimizer's state."""
    assert session.model is not None
    parameters = list(session.model.parameters())
    tensors = [*parameters, *session.model.buffers(), *(p for p in parameters if p.requires_grad)]
    if session.optimizer is not None:
        for state in session.optimizer.state.values():
            tensors += [v for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
