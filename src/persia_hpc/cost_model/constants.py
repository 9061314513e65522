"""Holds the constants of the cost model: the time that a core needs for each thing that is counted."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.config import to_toml
from persia_hpc.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Constants:
    """Holds nanoseconds that one core needs for one of each thing.

    docs/scaling.md says in which terms they stand. A constant for a step of a role, a batch, a record or a
    table is what Python, calls and their first touches of memory cost, however small the batch is. machine:
    where they were measured.
    """

    machine: str
    read_value: float  # an id, dense feature or label, out of HDF5 into a shuffled batch
    read_batch: float
    dedup_id: float
    dedup_feature: float
    worker_batch: float
    worker_record: float  # for each server beyond the first, of a batch
    pull_row: float
    pull_byte: float  # of a row's weights
    push_row: float
    push_byte: float  # of a row's weights and optimizer state
    insert_row: float  # on top of a pull
    table_call: float  # one table of one pull or push
    server_batch: float  # where many come at once
    server_step: float  # passes that find nothing, and waking
    pool_id: float
    pool_byte: float  # of the vectors of the ids; forward and backward
    pool_feature: float
    trainer_step: float
    crowded: float  # how much longer a microsecond of computing takes while all other cores are busy
    worker_byte: float  # of keys, rows and gradients, from ring to ring
    trainer_byte: float  # of gradients, into a ring
    copy_byte: float  # from memory to memory that ranks of a node share
    wake: float  # of a sleeping rank, by another on its node
    allreduce_step: float  # Horovod's cycle: mostly waiting
    allreduce_cpu: float  # of a step: what of that is computing, or polling
    allreduce_byte: float  # of dense gradients
    node_sum: float  # a step's sum of few bytes by train.reducer = "mpi"; who waits for others sleeps


# `persia-hpc plan --measure`, rounded; the least disturbed of several runs on a machine that had other work.
DEFAULTS = Constants(
    machine="virtual machine, 2 cores of an AMD EPYC (AVX-512)",
    read_value=2.7,
    read_batch=20e3,
    dedup_id=7.0,
    dedup_feature=700.0,
    worker_batch=240e3,
    worker_record=5.5e3,
    pull_row=12.0,
    pull_byte=0.15,
    push_row=9.0,
    push_byte=0.14,
    insert_row=120.0,
    table_call=450.0,
    server_batch=14e3,
    server_step=36e3,
    pool_id=1.0,
    pool_byte=0.115,
    pool_feature=4.8e3,
    trainer_step=100e3,
    crowded=0.0,  # not known of that one
    worker_byte=0.2,
    trainer_byte=0.1,
    copy_byte=0.03,
    wake=25e3,
    allreduce_step=1.1e6,
    allreduce_cpu=1.0e6,
    allreduce_byte=0.2,
    node_sum=20e3,
)
NAMES = tuple(f.name for f in dataclasses.fields(Constants) if f.name != "machine")


def constants_text(constants: Constants) -> str:
    """Returns the constants as the text of a TOML file that `load_constants` reads."""
    values = dataclasses.asdict(constants)
    machine = values.pop("machine")
    rounded = {name: float(f"{value:.3g}") for name, value in values.items()}
    return to_toml({"machine": machine, "nanoseconds": rounded})


def load_constants(path: Path) -> Constants:
    """Reads the constants from a file that `persia-hpc plan --measure` wrote.

    Raises UserError if it can't be read or is another file.
    """
    hint = "write one with persia-hpc plan --measure FILE"
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--constants {path} can't be read: {error.strerror}; {hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--constants {path} is not TOML: {error}; {hint}") from None
    given = values.get("nanoseconds")
    if not isinstance(given, dict) or not isinstance(values.get("machine"), str):
        raise UserError(
            f"--constants {path}: expected `machine` and a table [nanoseconds], got {list(values)}; {hint}"
        )
    wrong = sorted(set(NAMES) ^ set(given))
    if wrong:
        what = "lacks" if wrong[0] in NAMES else "has an unknown constant"
        raise UserError(f"--constants {path} {what} {wrong[0]}; expected {', '.join(NAMES)}; {hint}")
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise UserError(
                f"--constants {path}: {name} = {value!r}, expected nanoseconds, 0 or more; {hint}"
            )
    return Constants(machine=values["machine"], **{name: float(given[name]) for name in NAMES})
