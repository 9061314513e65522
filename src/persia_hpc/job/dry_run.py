"""Says what a job would do, without starting it: the plan, memory of each rank, one step of the model."""

from __future__ import annotations

from persia_hpc.checkpoint.choose import check_initial
from persia_hpc.config import Config, config_text, mib
from persia_hpc.cost_model.memory import Memory, Room, node_memory
from persia_hpc.runtime.node_memory import available_memory, shared_memory_room
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout
from persia_hpc.topology.roles import Plan, make_plan

from .local_stream import LocalStream
from .sources import check_sequences
from .trial import Trial


def dry_run(config: Config) -> str:
    """Returns configuration, plan, tables, memory and what one step did, as text. Writes no file.

    The step is a whole one, forward to update, on empty tables of this process.
    Raises UserError for bad input, and for a model, loss or optimizer that fails.
    """
    trial = Trial(config)
    check_initial(config, trial.schema)
    check_sequences(trial.sources)
    schema, layout, session = trial.schema, trial.layout, trial.session
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
        *_memory(
            plan, trial.memory(plan, room=_room()), "ranks of a node" if config.ranks.per_node else "ranks"
        ),
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


def _room() -> Room:
    """Returns what this node has for rings, as a job that starts on it finds it."""
    memory = available_memory()
    return Room({0: shared_memory_room()[0]}, {} if memory is None else {0: memory})


def _tables(layout: Layout, schema: DatasetSchema, stream: LocalStream) -> list[str]:
    """Returns a line for each table, with the features that use it."""
    lines = []
    for spec, table in zip(layout.tables, stream.server.tables, strict=True):
        assert table is not None
        hashing, disk = spec.config.hash, spec.config.disk
        users = []
        for feature in (f for f in layout.features if layout.tables[f.table] is spec):
            if feature.like is not None:
                users.append(f"{feature.name} (drawn like {feature.like})")
                continue
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
            + (f"; beyond, {mib(disk.capacity_bytes)} in {disk.path}" if disk else "")
            + f"); features: {', '.join(users)}"
        )
    return lines


def _memory(plan: Plan, memory: Memory, ranks: str) -> list[str]:
    """Returns lines that tell what the largest rank of each role holds, and all `ranks` together."""
    lines = []
    for role, parts in memory.items():
        listed = " + ".join(f"{mib(size)} {what}" for what, size in parts.items())
        lines.append(f"  each of {plan.count(role)} {role.value}s: {mib(sum(parts.values()))} = {listed}")
    rings = sum(memory[member.role]["rings"] for member in plan.members)
    lines.append(
        f"  all {ranks}: {mib(sum(node_memory(plan, memory).values()))}, of which {mib(rings)} are "
        "rings, in shared memory (/dev/shm) between ranks of one node"
    )
    return lines
