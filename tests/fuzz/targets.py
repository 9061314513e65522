"""Lists the commands that are tried, what each reads, and which of that its checksums cover."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import PersiaError
from persia_hpc.launch.doctor import Wanted
from persia_hpc.launch.doctor_lines import GOOD, Line
from persia_hpc.launch.doctor_machine import check_machine, check_run_dir
from tests.support.checkpoints import CHANGES, FULL, TABLES
from tests.support.tiny import digest, run_digest

RUN, TIERED = Path("run"), Path("tiered")
CHECKPOINT = (f"run/{CHANGES}/*", f"run/{FULL}/*", f"run/{CHANGES}", f"run/{FULL}")
CHECKPOINTS = ("run/step-*/*", "run/step-*", "run/latest")
TIERED_FILES = ("tiered/step-*/*", "tiered/step-*")
BEST_FILES = ("run/best.json", "run/best")
SERVED = ("served/*/*", "served/version-*", "served/base-*", "served/latest")
RUN_FILES = ("run/summary.json", "run/metrics.jsonl", "run/config.toml")
SEED_FILES = ("seeds/seed-1/summary.json", "seeds/seed-1/metrics.jsonl", "seeds/seed-2/evaluation.json")
FAILED_FILES = ("failed/metrics.jsonl", "failed/failure.json", "failed/ranks/*", "failed/config.toml")
DATA = ("train.h5", "plain.h5", "test.h5")
REVIEWS = "reviews.jsonl"
YAMBDA = ("yambda", "--input", "yambda/multi_event.parquet", "--mappings", "yambda", "--history", "6")
PARQUET, TABLE = "parquet/day_*.parquet", "parquet/schema.toml"
PARTS = frozenset({"shard", "dense"})


@dataclass(frozen=True)
class Target:
    """Holds one way to read files.

    call: is made in the folder of files, prints its answer and returns an exit code. reads: patterns of the
    files that are damaged for it. covered: kinds of files whose damage never may change the answer. notices:
    it must refuse damage of these. outputs: files that are part of the answer. changes: folders it may write
    into. long: it may take long if its configuration says so.
    """

    name: str
    call: Callable[[], int]
    reads: tuple[str, ...]
    covered: frozenset[str] = frozenset()
    notices: bool = False
    outputs: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    long: bool = False


def command(*arguments: str) -> Callable[[], int]:
    return lambda: main(arguments)


def refusing(call: Callable[[], None]) -> Callable[[], int]:
    """A call of the Python interface, which tells what it refuses as the command line does."""

    def run() -> int:
        try:
            call()
        except PersiaError as error:
            print(f"persia-hpc: error: {error}", file=sys.stderr)
            return error.exit_code
        return 0

    return run


def train(**changes: object) -> Callable[[], int]:
    def call() -> None:
        summary = ph.train("train.toml", set=changes, quiet=True)
        print(run_digest(Path(summary["run_dir"])), summary["steps"], summary["status"])

    return refusing(call)


def load(path: Path = RUN / CHANGES) -> None:
    run = ph.load(path)
    rows = {name: run.rows(name, np.arange(50)) for name in run.tables}
    weights = {name: value.numpy() for name, value in run.model().state_dict().items()}
    print(run.step, digest({**rows, **weights}))


def read() -> None:
    reader = ph.Reader("served", follow=False)
    rows = {name: reader.rows(name, np.arange(50)).values for name in reader.tables}
    request = {"item": 3, "user": 5, "tags": [1, 2], "history": [3, 4]}
    pooled = {f"pooled {name}": vector for name, vector in reader.pooled(request).values.items()}
    scores = reader.predict(request, [0.1, 0.2, 0.3]).values
    print(reader.version.step, digest({**rows, **pooled, "scores": scores}))


def preprocess(*more: str) -> Callable[[], int]:
    return prepared("table", "table/schema.toml", *more)


def doctor() -> int:
    """Prints what a configuration wants of a machine; how this one is would be another answer each time."""

    def examine(wanted: Wanted) -> Iterator[Line]:
        yield Line(GOOD, "wanted", str(wanted))
        machine = check_machine(wanted.shared_bytes, wanted.ranks)
        for line in (*machine, *check_run_dir(Path(wanted.run_dir))):
            yield Line(GOOD, line.what, "")

    with mock.patch("persia_hpc.launch.doctor.examine", examine):
        return main(["doctor", "train.toml"])


def prepared(*arguments: str) -> Callable[[], int]:
    def call() -> int:
        code = main(["preprocess", *arguments, "--out", "made"])
        if code == 0:
            print(
                digest(
                    {
                        name: values
                        for path in sorted(Path("made").glob("*.h5"))
                        for name, values in contents(path).items()
                    }
                )
            )
        return code

    return call


def contents(path: Path) -> dict[str, np.ndarray]:
    """All datasets of an HDF5 file by name, as h5py reads them."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r", locking=False) as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[f"{path.stem}/{name}"] = item[...]

        file.visititems(visit)
    return found


def targets() -> list[Target]:
    """Returns all of them; those of files that this version doesn't make find nothing to damage."""
    at = str(RUN / CHANGES)
    new, old, made = ("new",), ("run",), ("exported",)
    resume = {"run_dir": "run", "checkpoint.resume": True, "train.epochs": 2}
    parquet = {"data.train": [PARQUET], "data.schema": TABLE}
    init = {"run_dir": "new", "checkpoint.init_from": at}
    evaluate = command("evaluate", at, "--set", "data.test=plain.h5")
    importance = command("importance", at, "--set", "data.test=plain.h5", "--json")
    predict = command("predict", at, "--data", "test.h5", "--out", "scores.csv")
    plan = command("plan", "train.toml", "--dense-rate", "1000", "--from", "run")
    export = command("checkpoint", "export", at, "--table", *TABLES, "--state", "--out", "tables")
    exported = command("export", at, "--to", "torchscript", "--out", "exported")
    vectors = command("export", at, "--tables", "safetensors", "--table", "item", "--out", "exported")
    foreign = {"run_dir": "new", "checkpoint.init_from": "vectors"}
    page = command("report", "run", "--html", "page.html")
    both = command("report", "run", "failed", "--html", "page.html")
    tables = tuple(f"tables/{name}.parquet" for name in TABLES)
    return [
        Target("inspect", command("inspect", *DATA, "--json", "facts.json"), DATA, outputs=("facts.json",)),
        Target("preprocess table", preprocess(), ("table/*",)),
        Target("preprocess --encoding", preprocess("--encoding", "prepared"), ("prepared/*.json",)),
        Target("preprocess amazon", prepared("amazon", "--input", REVIEWS, "--min-count", "1"), (REVIEWS,)),
        Target("preprocess yambda", prepared(*YAMBDA), ("yambda/*",)),
        Target("train --dry-run", command("train", "train.toml", "--dry-run"), ("train.toml", "train.h5")),
        Target("train, sequences", command("train", "events.toml", "--dry-run"), ("events.*",)),
        Target("doctor", doctor, ("train.toml", "train.h5")),
        Target("plan", plan, ("train.toml", "run/summary.json", "run/config.toml", "train.h5")),
        Target("train", train(run_dir="new"), ("train.toml", "train.h5"), changes=new, long=True),
        Target("init", command("init", *DATA, "--out", "proposed.toml"), DATA, outputs=("proposed.toml",)),
        Target("inspect, Parquet", command("inspect", PARQUET, "--schema", TABLE), ("parquet/*",)),
        Target("train, Parquet", train(run_dir="new", **parquet), ("parquet/*",), changes=new),
        Target("train, resumed", train(**resume), (*CHECKPOINTS, *RUN_FILES), PARTS, changes=old, long=True),
        Target("train, init_from", train(**init), CHECKPOINT, PARTS, changes=new),
        Target("train, init_from tables", train(**foreign), ("vectors/*",), changes=new),
        Target("evaluate", evaluate, (*CHECKPOINT, "plain.h5"), PARTS),
        Target("importance", importance, (*CHECKPOINT, "plain.h5"), PARTS),
        Target("evaluate RUN", command("evaluate", "run", "--set", "data.test=plain.h5"), BEST_FILES),
        Target("predict", predict, (*CHECKPOINT, "test.h5"), PARTS, outputs=("scores.csv",)),
        Target("export --to", exported, CHECKPOINT, PARTS, outputs=("exported/model.json",), changes=made),
        Target(
            "export --tables",
            vectors,
            CHECKPOINT,
            PARTS - {"dense"},
            outputs=("exported/item.safetensors", "exported/tables.json"),
            changes=made,
        ),
        Target("ph.load", refusing(load), CHECKPOINT, PARTS),
        Target("ph.load, cold", refusing(lambda: load(TIERED)), TIERED_FILES, PARTS),
        Target(
            "checkpoint verify, cold", command("checkpoint", "verify", "tiered"), TIERED_FILES, PARTS, True
        ),
        Target("ph.Reader", refusing(read), SERVED, frozenset({"rows", "dense"})),
        Target("checkpoint ls", command("checkpoint", "ls", "run"), CHECKPOINTS),
        Target("checkpoint ls STEP", command("checkpoint", "ls", at), CHECKPOINT),
        Target("checkpoint verify", command("checkpoint", "verify", "run"), CHECKPOINTS, PARTS, notices=True),
        Target("checkpoint diff", command("checkpoint", "diff", at, "run"), CHECKPOINT),
        Target("checkpoint export", export, CHECKPOINT, PARTS - {"dense"}, outputs=tables),
        Target("status", command("status", "run"), (*RUN_FILES, *BEST_FILES, "run/latest")),
        Target("status, failed", command("status", "failed"), FAILED_FILES),
        Target("report", command("report", "run"), RUN_FILES),
        Target("report, failed", command("report", "failed"), FAILED_FILES),
        Target("report, seeds", command("report", "seeds"), SEED_FILES),
        Target("status, seeds", command("status", "seeds"), SEED_FILES),
        Target("report --html", page, (*RUN_FILES, *CHECKPOINTS, *BEST_FILES), outputs=("page.html",)),
        Target("report --html, two", both, (*RUN_FILES, *FAILED_FILES), outputs=("page.html",)),
    ]
