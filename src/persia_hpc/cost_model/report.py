"""Shows a prediction as text, and as values for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persia_hpc.config import mib
from persia_hpc.topology.roles import ROLE_ORDER, Role

from .cluster import Cluster
from .costs import READER, Job, server_share
from .memory import Memory, fits, node_memory
from .predict import IN_STEP, Prediction

SHOWN_NODES = 4
# Below it, on fewer cores than ranks, runs of one job differed by a third (benchmarks/RESULTS.md).
SHORT_STEP_SECONDS = 5e-3


@dataclass(frozen=True)
class Option:
    """Describes a job with one more rank of a role, and the samples per second that it would reach.

    With [ranks.per_node] each node has one more. bottleneck: what then limits the samples per second.
    """

    role: str
    counts: Mapping[str, int]
    samples_per_second: float
    bottleneck: str


@dataclass(frozen=True)
class Report:
    """Holds all that `persia-hpc plan` prints."""

    job: Job
    cluster: Cluster
    prediction: Prediction
    memory: Memory
    options: Sequence[Option]
    obstacles: Mapping[str, str]  # by role of which there can't be one more: why
    counted: str  # where ids and unique rows come from

    @property
    def fits(self) -> bool | None:
        """Returns whether each node's ranks fit into its memory, None if no node's memory is known."""
        return fits(self.prediction.plan, self.memory, self.cluster)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as values for JSON.

        Seconds are those of a step; so are bytes, except those of memory.
        """
        p = self.prediction
        return {
            "schema_version": 1,
            "constants": self.job.constants.machine,
            "dense": self.job.dense.source,
            "counts": self.counted,
            "reducer": self.job.config.reducer(p.plan.count(Role.TRAINER)),
            "roles": {f"{role.value}s": p.plan.count(role) for role in ROLE_ORDER},
            "samples_per_second": p.samples_per_second,
            "step_seconds": p.step_seconds,
            "bottleneck": p.bottleneck.name,
            "utilisation": {stage.name: p.seconds(stage) / p.step_seconds for stage in p.stages},
            "phase_seconds": p.costs.seconds,
            "batch": dict(vars(self.job.work)),
            "node_link_bytes": {str(n): {"out": out, "in": into} for n, (out, into) in p.links.items()},
            "memory_bytes": {role.value: dict(parts) for role, parts in self.memory.items()},
            "node_memory_bytes": {str(n): b for n, b in node_memory(p.plan, self.memory).items()},
            "fits": self.fits,
            "disks": self.disks(),
            "options": [vars(option) for option in self.options],
            "obstacles": dict(self.obstacles),
        }

    def disks(self) -> list[dict[str, Any]]:
        """Returns of each table with a disk tier what it may take there, and what it may ask of the drive.

        most_reads_per_second: of the busiest server at the predicted rate, if every row of a batch came from
        disk; how many do is known only when it runs.
        """
        p, job = self.prediction, self.job
        rate = p.plan.count(Role.TRAINER) / p.step_seconds
        share = server_share(job.layout, p.plan.count(Role.PARAMETER_SERVER))
        return [
            {
                "table": table.name,
                "path": disk.path,
                "capacity_bytes": disk.capacity_bytes,
                "most_reads_per_second": rows * rate * share,
            }
            for table, rows in zip(job.layout.tables, job.work.table_rows, strict=True)
            if (disk := table.config.disk) is not None
        ]

    def lines(self) -> Iterator[str]:
        """Yields the report as lines for people."""
        p, job, w = self.prediction, self.job, self.job.work
        yield f"constants: {job.constants.machine}; dense model: {job.dense.source}; rows: {self.counted}"
        if reducer := job.config.reducer(p.plan.count(Role.TRAINER)):
            yield f"dense gradients: summed by {reducer} (train.reducer), as {job.config.train.dense_wire}"
        yield "plan:"
        nodes = p.plan.table().splitlines()
        yield from ("  " + line for line in nodes[:SHOWN_NODES])
        if len(nodes) > SHOWN_NODES:
            yield f"  ... {len(nodes) - SHOWN_NODES} nodes more"
        yield (
            f"a trainer's batch: {w.samples:,.0f} samples, {w.ids:,.0f} ids, {w.rows:,.0f} unique rows; KiB: "
            f"keys {w.key_bytes / 1024:,.0f}, rows {w.row_bytes / 1024:,.0f}, batch to the trainer "
            f"{w.feed_bytes / 1024:,.0f}, gradients {w.gradient_bytes / 1024:,.0f} on each of two hops"
        )
        yield "milliseconds of a step, of the busiest rank:"
        for role, phases in p.costs.seconds.items():
            parts = " + ".join(f"{phase} {1e3 * s:.2f}" for phase, s in phases.items() if s)
            name = "  its reading thread" if role == READER else f"  {role}"
            yield f"{name}: {1e3 * sum(phases.values()):.2f} = {parts}"
        yield "how busy (100 %: nothing can be faster than this):"
        for stage in sorted(p.stages, key=p.seconds, reverse=True):
            yield f"  {p.seconds(stage) / p.step_seconds:4.0%}  {stage.name}"
        yield from self._link_lines()
        yield from self._memory_lines()
        yield from self._disk_lines()
        yield (
            f"predicted: {p.samples_per_second:,.0f} samples/s, steps of {1e3 * p.step_seconds:.2f} ms; "
            f"bottleneck: {p.bottleneck.name}"
        )
        each = " on each node" if job.config.ranks.per_node is not None else ""
        for option in self.options:
            change = option.samples_per_second / p.samples_per_second - 1
            counts = "+".join(str(n) for n in option.counts.values())
            then = "" if option.bottleneck == p.bottleneck.name else f"; then bottleneck: {option.bottleneck}"
            rate = f"{option.samples_per_second:,.0f} ({change:+.0%})"
            yield f"  with {counts}, one {option.role} more{each}: {rate}{then}"
        for role, why in self.obstacles.items():
            yield f"  no {role} more{each}: {why}"
        yield f"add next: {self.next_role()}"
        yield from self._caveats()

    def next_role(self) -> str:
        """Returns the role of which one more rank brings most, or the reason why none helps."""
        p = self.prediction
        best = max(self.options, key=lambda option: option.samples_per_second, default=None)
        if best is not None and best.samples_per_second >= 1.02 * p.samples_per_second:
            return best.role
        # What keeps the best option from bringing more, or what keeps ranks out.
        name = p.bottleneck.name if best is None else best.bottleneck
        if name.startswith(("cores of node", IN_STEP)):
            return f"no role, but a node, or more cores in each: {name} would be the bottleneck"
        if name.startswith("link of node"):
            return f"no role, but a node, or a faster link: {name} would be the bottleneck"
        missing = self.obstacles.get(p.bottleneck.name.replace(" ", "_").removesuffix("s"))
        if missing is not None:
            return f"no role: {p.bottleneck.name} are the bottleneck, and {missing}; a node more has room"
        return f"no role{' that there is room for' * bool(self.obstacles)}: {name} would stay the bottleneck"

    def _caveats(self) -> Iterator[str]:
        config = self.job.config
        if config.wire.reuse_steps:
            yield (
                "not modelled: wire.reuse_steps saves rows on their way; bytes and times are those without it"
            )
        if self.job.dense.threads > 1 and config.train.threads is None:
            yield (
                f"assumed throughout: {self.job.dense.threads} threads a trainer, its fair share with the "
                "configured ranks; with more ranks on a node that is less (fix train.threads)"
            )

        here = Counter(member.node for member in self.prediction.plan.members)
        crowded = any(count > self.cluster.node_cores(node) for node, count in here.items())
        if crowded and self.prediction.step_seconds < SHORT_STEP_SECONDS:
            yield (
                "take it for a range, some 30 % less to 20 % more: steps are short, and ranks that share "
                "cores wait for one"
            )

    def _link_lines(self) -> Iterator[str]:
        p, limit = self.prediction, self.cluster.link_bytes
        if len(p.links) == 1:
            return
        assert limit is not None
        yield f"links, GB/s of {limit / 1e9:g}:"
        busiest = sorted(p.links.items(), key=lambda item: -max(item[1]))[:SHOWN_NODES]
        for node, rates in busiest:
            out, into = (rate / p.step_seconds / 1e9 for rate in rates)
            yield f"  node {node}: {out:.3f} out, {into:.3f} in ({max(out, into) * 1e9 / limit:.0%})"

    def _disk_lines(self) -> Iterator[str]:
        disks = self.disks()
        if not disks:
            return
        total = sum(disk["most_reads_per_second"] for disk in disks)
        yield (
            f"disks: at most {total:,.0f} reads/s on the busiest server, if all rows of a batch came from "
            "there; times are those without (persia-hpc doctor --disk says what a drive does)"
        )
        for disk in disks:
            reads, size = disk["most_reads_per_second"], mib(disk["capacity_bytes"])
            yield f"  {disk['table']}: {size} over all servers in {disk['path']}, {reads:,.0f} reads/s"

    def _memory_lines(self) -> Iterator[str]:
        yield "memory of each, beside programs and libraries:"
        for role, parts in self.memory.items():
            listed = " + ".join(f"{mib(n)} {what}" for what, n in parts.items())
            yield f"  {role.value}: {mib(sum(parts.values()))} = {listed}"
        nodes = node_memory(self.prediction.plan, self.memory)
        node = max(nodes, key=lambda n: nodes[n] / (self.cluster.node_memory(n) or 2**60))
        limit = self.cluster.node_memory(node)
        said = "" if limit is None else f" of {mib(limit)}: {'fits' if self.fits else 'DOES NOT FIT'}"
        yield f"  fullest node ({node}): {mib(nodes[node])}{said}"
