"""Says which world rank has which role: a pure function of the counts and of which ranks share a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from persia_hpc.errors import UserError


class Role(str, Enum):
    """Says what a rank does for its whole life."""

    PARAMETER_SERVER = "parameter_server"
    EMBEDDING_WORKER = "embedding_worker"
    TRAINER = "trainer"


# Order within a node: the ranks of a role are neighbours, and trainers, which have GPUs, come last.
ROLE_ORDER = (Role.PARAMETER_SERVER, Role.EMBEDDING_WORKER, Role.TRAINER)
ROW_PLANE = (Role.PARAMETER_SERVER, Role.EMBEDDING_WORKER)
FEED_PLANE = (Role.EMBEDDING_WORKER, Role.TRAINER)


@dataclass(frozen=True)
class Member:
    """Describes one rank of the job; `role_rank` is its server_rank, worker_rank or trainer_rank."""

    world_rank: int
    role: Role
    role_rank: int
    node: int


@dataclass(frozen=True)
class Plan:
    """Holds the roles of all ranks, indexed by world rank."""

    members: tuple[Member, ...]

    def ranks(self, role: Role) -> tuple[int, ...]:
        """Returns the world ranks of a role, in the order of their role_rank."""
        return self._ranks[role]

    def of(self, role: Role) -> tuple[Member, ...]:
        """Returns the members that have a role, in the order of world ranks."""
        return tuple(m for m in self.members if m.role is role)

    def count(self, role: Role) -> int:
        """Returns the number of ranks of a role."""
        return len(self.of(role))

    def plane(self, roles: tuple[Role, Role]) -> tuple[int, ...]:
        """Returns the world ranks of a plane, in the order of their ranks in it."""
        return tuple(sorted(self.ranks(roles[0]) + self.ranks(roles[1])))

    def row_rank(self, role: Role, role_rank: int) -> int:
        """Returns the rank of a server or worker in the row plane."""
        return self._row_ranks[self.ranks(role)[role_rank]]

    def feed_rank(self, role: Role, role_rank: int) -> int:
        """Returns the rank of a worker or trainer in the feed plane."""
        return self._feed_ranks[self.ranks(role)[role_rank]]

    # Asked for each ring of a job: jobs of 100,000 ranks are planned too.

    @cached_property
    def _ranks(self) -> dict[Role, tuple[int, ...]]:
        def ordered(role: Role) -> list[Member]:
            return sorted(self.of(role), key=lambda m: m.role_rank)

        return {role: tuple(m.world_rank for m in ordered(role)) for role in Role}

    @cached_property
    def _row_ranks(self) -> dict[int, int]:
        return {world_rank: i for i, world_rank in enumerate(self.plane(ROW_PLANE))}

    @cached_property
    def _feed_ranks(self) -> dict[int, int]:
        return {world_rank: i for i, world_rank in enumerate(self.plane(FEED_PLANE))}

    @cached_property
    def workers_of_trainer(self) -> tuple[tuple[int, ...], ...]:
        """Returns for each trainer_rank the worker_ranks that feed it.

        Workers of the trainer's node are preferred, and all are evenly loaded. With fewer workers than
        trainers each trainer has one; with more, every worker has one trainer and a trainer's workers take
        turns, a step each.
        """
        workers, trainers = self.of(Role.EMBEDDING_WORKER), self.of(Role.TRAINER)
        load = {w.role_rank: 0 for w in workers}
        feeds: dict[int, list[int]] = {}
        for trainer in sorted(trainers, key=lambda m: m.role_rank):
            near = [w for w in workers if w.node == trainer.node] or list(workers)
            chosen = min(near, key=lambda w: (load[w.role_rank], w.role_rank)).role_rank
            load[chosen] += 1
            feeds[trainer.role_rank] = [chosen]
        for worker in sorted(workers, key=lambda m: m.role_rank):
            if load[worker.role_rank] == 0:
                near = [t for t in trainers if t.node == worker.node] or list(trainers)
                chosen = min(near, key=lambda t: (len(feeds[t.role_rank]), t.role_rank)).role_rank
                feeds[chosen].append(worker.role_rank)
        return tuple(tuple(sorted(feeds[t])) for t in range(len(trainers)))

    def table(self, hosts: Sequence[str] | None = None) -> str:
        """Returns the plan as text, with a line for each node."""
        lines = []
        for node in sorted({m.node for m in self.members}):
            here = [m for m in self.members if m.node == node]
            roles = []
            for role in ROLE_ORDER:
                ranks = [m for m in here if m.role is role]
                if ranks:
                    listed = ",".join(str(m.world_rank) for m in ranks)
                    roles.append(f"{len(ranks)} {role.value}{'s' if len(ranks) > 1 else ''} (rank {listed})")
            name = hosts[here[0].world_rank] if hosts else f"node {node}"
            lines.append(f"{name}: " + ", ".join(roles))
        return "\n".join(lines)


def parse_roles(text: str) -> frozenset[Role]:
    """Returns the roles that a text like "parameter_servers,trainers" names; all for an empty text.

    Raises UserError for an unknown role.
    """
    names = {f"{role.value}s": role for role in Role}
    given = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in given if name not in names]
    if wrong:
        raise UserError(
            f"PERSIA_HPC_ROLES = {text!r} names {wrong[0]!r}, which is no role; expected some of "
            f"{', '.join(names)}, separated by commas"
        )
    return frozenset(names[name] for name in given) or frozenset(Role)


def make_plan(
    counts: Mapping[str, int],
    nodes: Sequence[int],
    *,
    per_node: bool = False,
    allowed: Sequence[frozenset[Role]] | None = None,
) -> Plan:
    """Assigns roles to ranks.

    counts: ranks of each role (`parameter_servers`, `embedding_workers`, `trainers`), in the whole job or,
    with `per_node`, on each node.
    nodes: for each world rank, a number that is equal for ranks of one node.
    allowed: for each world rank the roles it may have, as the components of a heterogeneous job say; without
    it every rank may have each role.

    Raises UserError if the number of ranks isn't what the counts ask for, or the roles that `allowed` gives
    don't fit the counts.
    """
    wanted = {role: counts[f"{role.value}s"] for role in ROLE_ORDER}
    parts = list(dict.fromkeys(allowed or [frozenset(Role)] * len(nodes)))
    if len(parts) == 1 and parts[0] == frozenset(Role):
        return Plan(_assign(wanted, dict(enumerate(nodes)), per_node=per_node))
    assert allowed is not None
    if per_node:
        raise UserError(
            "[ranks.per_node] has the same roles on each node, but PERSIA_HPC_ROLES (a heterogeneous job) "
            "gives nodes different ones; write [ranks] with counts for the whole job"
        )
    members: list[Member] = []
    for role in ROLE_ORDER:
        places = sum(role in part for part in parts)
        if places != 1:
            raise UserError(
                f"PERSIA_HPC_ROLES lets {places or 'no'} components of the job have {role.value}s; each role "
                "belongs to exactly one"
            )
    for part in parts:
        inside = {role: n for role, n in wanted.items() if role in part}
        ranks = {r: nodes[r] for r in range(len(nodes)) if allowed[r] == part}
        if len(ranks) != sum(inside.values()):
            raise UserError(
                f"the component for {_counted(inside)} has {len(ranks)} ranks, but [ranks] asks for "
                f"{sum(inside.values())}; start so many in it or change [ranks]"
            )
        members += _assign({role: inside.get(role, 0) for role in ROLE_ORDER}, ranks, per_node=False)
    return Plan(tuple(sorted(members, key=lambda m: m.world_rank)))


def _counted(wanted: Mapping[Role, int]) -> str:
    return " + ".join(f"{n} {role.value}{'s' if n > 1 else ''}" for role, n in wanted.items())


def _assign(wanted: Mapping[Role, int], node_of: Mapping[int, int], *, per_node: bool) -> tuple[Member, ...]:
    """Members by world rank for ranks that may all have each role; node_of: node by world rank."""
    order = list(dict.fromkeys(node_of.values()))
    ranks = {node: [r for r, n in node_of.items() if n == node] for node in order}
    text, total = _counted(wanted), sum(wanted.values())
    if per_node:
        wrong = [node for node in order if len(ranks[node]) != total]
        if wrong:
            raise UserError(
                f"node {wrong[0]} has {len(ranks[wrong[0]])} ranks, but [ranks.per_node] asks for {text} = "
                f"{total} on each node; start {total} ranks on each node or change [ranks.per_node]"
            )
        shares = {node: dict(wanted) for node in order}
    else:
        if len(node_of) != total:
            raise UserError(
                f"the job has {len(node_of)} ranks, but [ranks] asks for {text} = {total}; "
                f"start it with `-n {total}` or change [ranks]"
            )
        shares = {node: dict.fromkeys(ROLE_ORDER, 0) for node in order}
        free = {node: len(ranks[node]) for node in order}
        for role in reversed(ROLE_ORDER):  # trainers first: they are the ones that must be spread evenly
            for _ in range(wanted[role]):
                node = min(order, key=lambda n: (shares[n][role] - (free[n] > 0) * len(node_of), -free[n], n))
                shares[node][role] += 1
                free[node] -= 1
    members = []
    next_rank = dict.fromkeys(ROLE_ORDER, 0)
    for node in order:
        here = iter(ranks[node])
        for role in ROLE_ORDER:
            for _ in range(shares[node][role]):
                members.append(Member(next(here), role, next_rank[role], node))
                next_rank[role] += 1
    return tuple(sorted(members, key=lambda m: m.world_rank))
