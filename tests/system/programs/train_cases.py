"""Real jobs, one after the other, each on the first ranks of the world: argv[1] is a JSON list of
configurations.
"""

from __future__ import annotations

import json
import sys

from mpi4py import MPI

from persia_hpc.config import load_config
from persia_hpc.job.agreement import meet
from persia_hpc.job.rank import RankJob, StartingRank
from persia_hpc.job.task import Task
from persia_hpc.launch.run_dir import claimed_run_dir

world = MPI.COMM_WORLD
for settings in json.loads(sys.argv[1]):
    config = load_config(settings)
    meet(world)  # ranks that the job before had no use for would poll in Split, on cores that it needs
    comm = world.Split(0 if world.rank < config.ranks.total() else MPI.UNDEFINED, world.rank)
    if comm != MPI.COMM_NULL:
        with claimed_run_dir(comm, config.run_dir, resume=config.checkpoint.resume) as run_dir:
            RankJob(StartingRank(config, run_dir, world=comm), Task(quiet=True)).run()
        comm.Free()
