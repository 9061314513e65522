"""Describes the machines that a job would run on, and places its ranks on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from persia_hpc.config import RanksConfig
from persia_hpc.errors import UserError
from persia_hpc.topology.roles import Plan, Role, make_plan

EMBEDDING_ROLES = frozenset({Role.PARAMETER_SERVER, Role.EMBEDDING_WORKER})


@dataclass(frozen=True)
class Cluster:
    """Describes the nodes of a cluster and the network between them.

    All roles run on `nodes`. With `cpu_nodes` only trainers do, and the other roles run on the CPU nodes.
    link_bytes: bytes per second of a node's link in each direction. latency_seconds: of a message between two
    nodes. memory_bytes, cpu_memory_bytes: of one node, None if unknown.
    """

    nodes: int = 1
    cores: int = 1
    gpus: int = 0
    cpu_nodes: int = 0
    cpu_cores: int = 1
    link_bytes: float | None = None
    latency_seconds: float | None = None
    memory_bytes: int | None = None
    cpu_memory_bytes: int | None = None

    def check(self) -> None:
        """Checks that the cluster can exist and that its network is described.

        Raises UserError for a number out of range, and for several nodes without link speed or latency.
        """
        least = {"nodes": 1, "cores": 1, "gpus": 0, "cpu_nodes": 0, "cpu_cores": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {value}: expected a whole number, at least {minimum}")
        for flag, number in (("--link", self.link_bytes), ("--latency", self.latency_seconds)):
            if number is None and self.nodes + self.cpu_nodes > 1:
                raise UserError(
                    f"{self.nodes + self.cpu_nodes} nodes, but no {flag}: how fast the network is can't be "
                    "guessed; give --link in GB/s of a node and direction, and --latency in microseconds"
                )
            if number is None:
                continue
            least_number = "at least 0" if flag == "--latency" else "above 0"
            if not math.isfinite(number) or number < 0 or (number == 0 and flag == "--link"):
                raise UserError(f"{flag}: got {number:g}, expected a finite number, {least_number}")

    def node_cores(self, node: int) -> int:
        """Returns the cores of a node. The numbers of `cpu_nodes` follow those of `nodes`."""
        return self.cores if node < self.nodes else self.cpu_cores

    def node_memory(self, node: int) -> int | None:
        """Returns the bytes of a node's memory, None if unknown. Numbers are as in `node_cores`."""
        return self.memory_bytes if node < self.nodes else self.cpu_memory_bytes

    def place(self, ranks: RanksConfig, counts: Mapping[str, int]) -> Plan:
        """Returns the roles and nodes of a job's ranks when a scheduler spreads them evenly.

        counts: ranks of each role in the whole job, in place of those in `ranks`.
        Raises UserError if the ranks can't be placed, also for more trainers than GPUs on a node with GPUs.
        """
        plan = self._spread_roles(ranks, counts)
        for node, trainers in Counter(m.node for m in plan.of(Role.TRAINER)).items():
            if 0 < self.gpus < trainers:
                raise UserError(
                    f"--gpus {self.gpus}: node {node} would have {trainers} trainers, expected one a GPU at "
                    "most; give more --nodes or --gpus, or lower ranks.trainers"
                )
        return plan

    def _spread_roles(self, ranks: RanksConfig, counts: Mapping[str, int]) -> Plan:
        total = sum(counts.values())
        if not self.cpu_nodes:
            if total < self.nodes:
                raise UserError(
                    f"--nodes {self.nodes}: there are only {total} ranks for them; change [ranks]"
                )
            if ranks.per_node is None:
                return make_plan(counts, _spread(total, range(self.nodes)))
            each = {role: count // self.nodes for role, count in counts.items()}
            return make_plan(each, _spread(total, range(self.nodes)), per_node=True)
        if ranks.per_node is not None:
            raise UserError("--cpu-nodes and [ranks.per_node] exclude each other: write [ranks] with counts")
        trainers = counts["trainers"]
        for flag, nodes, have in (
            ("--nodes", self.nodes, trainers),
            ("--cpu-nodes", self.cpu_nodes, total - trainers),
        ):
            if have < nodes:
                raise UserError(f"{flag} {nodes}: there are only {have} ranks for them; change [ranks]")
        there = _spread(trainers, range(self.nodes))
        here = _spread(total - trainers, range(self.nodes, self.nodes + self.cpu_nodes))
        allowed = [frozenset({Role.TRAINER})] * len(there) + [EMBEDDING_ROLES] * len(here)
        return make_plan(counts, there + here, allowed=allowed)


def _spread(ranks: int, nodes: range) -> list[int]:
    """Returns the node of each rank.

    Neighbouring ranks share nodes, and the numbers of ranks on two nodes differ by one at most.
    """
    base, more = divmod(ranks, len(nodes))
    return [node for i, node in enumerate(nodes) for _ in range(base + (i < more))]
