"""Jobs that must be refused by all ranks before training: argv[1] is a JSON list of configurations. Prints,
for
each, one JSON line with what every rank got.
"""

from __future__ import annotations

import json
import sys

from mpi4py import MPI

from persia_hpc.config import load_config
from persia_hpc.errors import PersiaError
from persia_hpc.job.rank import RankJob, StartingRank
from persia_hpc.job.task import Task
from persia_hpc.launch.run_dir import claimed_run_dir

world = MPI.COMM_WORLD
for settings in json.loads(sys.argv[1]):
    try:
        config = load_config(settings)
        with claimed_run_dir(world, config.run_dir, resume=config.checkpoint.resume) as run_dir:
            RankJob(StartingRank(config, run_dir, world=world), Task(quiet=True)).run()
        got = (0, "it ran")
    except PersiaError as error:
        got = (error.exit_code, str(error))
    everything = world.gather(got)
    if everything is not None:
        print(json.dumps(everything), flush=True)
