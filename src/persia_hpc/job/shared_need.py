"""Says how much shared memory the rings of a configuration want, without starting its job."""

from __future__ import annotations

from persia_hpc.config import Config
from persia_hpc.topology.channels import ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Role, make_plan

from .facts import facts_of_sources
from .sources import open_sources


def rings_wanted(config: Config) -> tuple[int, int]:
    """Returns the ranks of a node and the bytes that their rings want in its shared memory.

    Of a job with `[ranks]` in all, that is of one whose ranks are all on one node.
    Raises UserError for data that can't be used.
    """
    facts = facts_of_sources(config, open_sources(config))
    counts = config.ranks.counts()
    plan = make_plan(counts, [0] * sum(counts.values()))
    size = ring_sizes(
        config,
        facts.layout,
        facts.schema,
        num_servers=plan.count(Role.PARAMETER_SERVER),
        num_trainers=plan.count(Role.TRAINER),
    )
    return len(plan.members), sum(ring_memory(plan, size)[0])
