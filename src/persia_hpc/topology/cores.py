"""Says which cores each rank of a node runs on, by the cores, the roles and their threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.config import Config

from .roles import ROLE_ORDER, Role

Found = tuple[int, tuple[int, ...], bool]  # a rank's node, its CPUs, and whether it may have no more


@dataclass(frozen=True)
class Decision:
    """Holds what was decided for a node. `cpus`: of each of its ranks; None leaves them alone."""

    cpus: list[frozenset[int]] | None
    text: str


@dataclass(frozen=True)
class Core:
    """Describes a core: the NUMA node that it belongs to, and the numbers of its hardware threads."""

    numa_node: int
    cpus: tuple[int, ...]


def divide_cores(
    cores: Sequence[Core], ranks: Sequence[tuple[Role, int]], *, trainer_threads: int | None = None
) -> list[frozenset[int]] | None:
    """Returns the CPUs of each rank, or None where not every thread of a server or worker gets a core too.

    Sharing one they were slower than unbound: at times the system finds them a trainer's core that is idle.
    Trainers get cores of their own, as many as each other and at least their fair share, within a NUMA node
    where that is possible. Servers and workers share the rest; each stays within one NUMA node's part of it.

    ranks: role and number of threads, in the order of world ranks; a trainer's number is not looked at.
    trainer_threads: as configured.
    """
    trainers = [i for i, (role, _) in enumerate(ranks) if role is Role.TRAINER]
    others = [i for i in range(len(ranks)) if i not in trainers]
    if len(cores) < len(ranks):  # not enough for a core each: then hardware threads are divided
        cores = [Core(core.numa_node, (cpu,)) for core in cores for cpu in core.cpus]
    free: dict[int, list[Core]] = {}
    for core in sorted(cores, key=lambda c: (c.numa_node, c.cpus)):
        free.setdefault(core.numa_node, []).append(core)
    share = max(1, len(cores) // len(ranks))
    busy = sum(threads for role, threads in ranks if role is not Role.TRAINER)
    room = min(max(share * len(others), busy), len(cores) - share * len(trainers))
    if not trainers or busy > room:
        return None
    each = (len(cores) - room) // len(trainers)
    parts = sorted(_take(free, each) for _ in trainers)  # the first trainers have the first GPUs
    if trainer_threads is not None and any(len(cpus) < trainer_threads for _, cpus in parts):
        return None
    result = [frozenset[int]()] * len(ranks)
    for i, (_, cpus) in zip(trainers, parts, strict=True):
        result[i] = frozenset(cpus)
    load = dict.fromkeys((node for node, left in free.items() if left), 0)
    for i in sorted(others, key=lambda i: ROLE_ORDER.index(ranks[i][0])):
        node = min(load, key=lambda n: ((load[n] + ranks[i][1]) / len(free[n]), n))
        load[node] += ranks[i][1]
        result[i] = frozenset(cpu for core in free[node] for cpu in core.cpus)
    if any(threads > len(free[node]) for node, threads in load.items()):
        return None
    return result


def _take(free: dict[int, list[Core]], count: int) -> tuple[int, tuple[int, ...]]:
    """Takes `count` cores, of one NUMA node if it can; returns its number and the CPUs."""
    node = max(free, key=lambda n: (len(free[n]), n))
    taken: list[Core] = []
    while len(taken) < count:
        if not free[node]:
            node = max(n for n in free if free[n])
        taken.append(free[node].pop())
    return taken[0].numa_node, tuple(sorted(cpu for core in taken for cpu in core.cpus))


def read_cores(cpus: frozenset[int], system: Path = Path("/sys/devices/system")) -> list[Core]:
    """Returns the cores that these CPUs are, as the kernel describes them."""
    numa_node = {
        cpu: int(folder.name[len("node") :])
        for folder in system.glob("node/node[0-9]*")
        for cpu in parse_cpus(_text(folder / "cpulist"))
    }
    cores: dict[tuple[int, ...], int] = {}
    for cpu in sorted(cpus):
        siblings = parse_cpus(_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")) | {cpu}
        cores[tuple(sorted(siblings & cpus))] = numa_node.get(cpu, 0)
    return [Core(node, siblings) for siblings, node in cores.items()]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def parse_cpus(text: str) -> frozenset[int]:
    """Returns the numbers in the kernel's notation of a set of CPUs, such as "0-3,8"."""
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",") if part.strip()]
    return frozenset(cpu for ends in ranges for cpu in range(ends[0], ends[-1] + 1))


def format_cpus(cpus: frozenset[int]) -> str:
    """Returns a set of CPUs in the kernel's notation."""
    firsts = sorted(cpu for cpu in cpus if cpu - 1 not in cpus)
    lasts = sorted(cpu for cpu in cpus if cpu + 1 not in cpus)
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def describe(cpus_of: Mapping[Role, Sequence[frozenset[int]]]) -> str:
    """Returns one line that says which role is on which CPUs; ranks with the same ones are named once."""
    parts = []
    for role in ROLE_ORDER:
        if role in cpus_of:
            different = dict.fromkeys(format_cpus(cpus) for cpus in cpus_of[role])
            parts.append(f"{role.value}s on {' | '.join(different)}")
    return ", ".join(parts)


def decide(config: Config, roles: list[Role], found: list[Found]) -> Decision:
    """Says for a node what its ranks are bound to, or why they are not, if no other job is there."""
    if not config.ranks.bind_cores:
        return Decision(None, "not bound (ranks.bind_cores = false)")
    _, mine, all_allowed = found[0]
    if len(set(found)) > 1 or not all_allowed:
        return Decision(None, "as the ranks were bound before")
    threads = {Role.PARAMETER_SERVER: config.server_threads}
    cpus = divide_cores(
        read_cores(frozenset(mine)),
        [(role, threads.get(role, 1)) for role in roles],
        trainer_threads=config.train.threads,
    )
    if cpus is None:
        return Decision(None, f"not bound ({len(roles)} ranks on {len(mine)})")
    of_role = {role: [c for c, r in zip(cpus, roles, strict=True) if r is role] for role in set(roles)}
    return Decision(cpus, describe(of_role))


def allowed_cpus() -> frozenset[int]:
    """Returns the CPUs that this process could have: asked for all, the kernel gives those of the cpuset."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return frozenset(before)
    finally:
        os.sched_setaffinity(0, before)
