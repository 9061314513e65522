"""Makes the sound inputs that are damaged: data, tables, a run with checkpoints, a failed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import persia_hpc as ph
from persia_hpc.checkpoint.files import name_best
from persia_hpc.checkpoint.names import step_of
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.config.reader import config_text
from persia_hpc.samples.writer import DatasetWriter
from tests.support.checkpoints import CHANGES, LAST, VOCABULARY, change_manifest, train_runs
from tests.support.served import write_export
from tests.support.tiny import SCHEMA, SEQUENCES, tiny_batch, tiny_config, write_sequences

OUTSIDE = "outside"  # a folder beside that of a case, which nothing may change
TABLE = """\
missing = ["NA"]
[split]
by = "files"
files = { train = ["a.csv"], test = ["b.csv"] }
[labels.click]
column = "click"
positive = "1"
[dense.price]
column = "price"
missing = 0.0
[ids.user]
column = "user"
type = "integer"
[ids.words]
column = "words"
separator = "|"
type = "string"
[ids.color]
column = "color"
vocabulary = true
[ids.range]
column = "price"
edges = [5, 10.5, 20]
[ids.user_range]
cross = ["user", "range"]
"""
COLORS = ("gold", "blue", "green", "red")


def make_corpus() -> None:
    """Fills the current directory; paths in what is written are relative."""
    train_runs(Path(), "a")
    Path("a").rename("run")
    for name in ("step-00000004", "step-00000008"):
        shutil.rmtree(Path("run") / name)
    with DatasetWriter("plain.h5", SCHEMA, chunk_rows=64, compression="none") as writer:
        writer.write(tiny_batch(320, vocabulary=VOCABULARY))  # as train.h5, uncompressed
    config = load_config(tiny_config(write_sequences(Path("events.h5"), 100), **SEQUENCES))
    Path("events.toml").write_text(config_text(config))
    shutil.copyfile("train.h5", "test.h5")
    text = (Path("run") / "config.toml").read_text()
    Path("train.toml").write_text(text.replace('run_dir = "a"', 'run_dir = "new"'))
    own = Path("run/config.toml")
    own.write_text(own.read_text().replace('run_dir = "a"', 'run_dir = "run"'))
    for step in Path("run").glob("step-*"):
        change_manifest(step, lambda manifest: manifest["config"].update(run_dir="run"))
    name_best(Path("run"), {"metric": "auc", "mode": "max", "value": 0.75, "step": step_of(Path(LAST))})
    _still(Path("run"))
    make_tiered(Path("tiered"))
    write_export(Path("served"), Path("run") / LAST)
    _fail(Path("failed"))
    for seed in (1, 2):  # an array of seeds
        shutil.copytree(
            "run", f"seeds/seed-{seed}", ignore=shutil.ignore_patterns("step-*", "latest", "best*")
        )
        Path(f"seeds/seed-{seed}/evaluation.json").write_text(
            json.dumps({"samples": 320, "auc": 0.5 + seed / 10})
        )
    Path("seeds/slurm_job").write_text("4711\n")
    make_table(Path("table"))
    make_reviews(Path("reviews.jsonl"))
    make_yambda(Path("yambda"))
    make_parquet(Path("parquet"))
    assert main(["preprocess", "table", "table/schema.toml", "--out", "prepared"]) == 0
    make_vectors(Path("vectors"))


def make_tiered(run: Path) -> None:
    """A run with a disk tier, whose last checkpoint has a file of rows from disk."""
    config = tiny_config("train.h5", run_dir=str(run), checkpoint={"every": 5, "keep": 2})
    config["tables"]["item"] |= {
        "buckets": 2,
        "capacity": "12 KiB",
        "disk": {"path": ".", "capacity": "1 MiB"},
    }
    ph.train(config, quiet=True)
    assert list(run.glob("latest/cold-*.h5"))
    _still(run)


def make_table(table: Path, rows: int = 40) -> None:
    """Two CSV files and their schema."""
    table.mkdir()
    (table / "schema.toml").write_text(TABLE)
    for number, name in enumerate(("a.csv", "b.csv")):
        lines = ["click,price,user,words,color"]
        for i in range(number, number + rows):
            price = "NA" if i % 11 == 3 else f"{(i * 37 % 100) / 4}"
            lines.append(f"{i * 7 % 3 % 2},{price},{i * 13 % 17},w{i % 5}|w{i % 3},{COLORS[i * i % 4]}")
        (table / name).write_text("\n".join(lines) + "\n")


def make_reviews(path: Path) -> None:
    """Amazon reviews as of 2014."""
    with path.open("w") as file:
        for i in range(60):
            review = {"reviewerID": f"A{i % 7:013d}", "asin": f"B{i * 13 % 11:09d}"}
            file.write(json.dumps({**review, "overall": 1.0 + i % 5, "unixReviewTime": i * 7919}) + "\n")


def make_yambda(folder: Path, events: int = 120) -> None:
    """Yambda's events and mappings."""
    import polars as pl  # which starts threads, and they don't survive a fork

    folder.mkdir()
    rows = range(events)
    columns = {
        "uid": [1 + i // 40 for i in rows],
        "timestamp": [i % 40 * 9_000 for i in rows],
        "item_id": [1 + i * 7 % 13 for i in rows],
        "is_organic": [i % 2 for i in rows],
        "event_type": ["like" if i % 9 == 4 else "listen" for i in rows],
        "played_ratio_pct": [i * 31 % 120 for i in rows],
    }
    pl.DataFrame(columns).write_parquet(folder / "multi_event.parquet", row_group_size=32)
    for kind in ("artist", "album"):
        mapping = {"item_id": [*range(1, 12), 3], f"{kind}_id": range(12)}
        pl.DataFrame(mapping).write_parquet(folder / f"{kind}_item_mapping.parquet")


def make_vectors(folder: Path) -> None:
    """Tables of other programs, a format each."""
    at = f"run/{CHANGES}"
    for to, table in (("parquet", "item"), ("safetensors", "user")):
        assert main(["export", at, "--tables", to, "--table", table, "--out", str(folder)]) == 0
    (folder / "tables.json").unlink()
    state = {"ebc.embedding_bags.t_item.weight": torch.arange(120.0).reshape(30, 4)}
    torch.save(state, folder / "state.bin")  # not .pt, which a checkpoint has


def make_parquet(folder: Path) -> None:
    """The samples of train.h5 as Parquet, with the schema that they are read with."""
    from tests.support.parquet import write_parquet  # with polars, as above

    folder.mkdir()
    write_parquet(folder, 320, vocabulary=VOCABULARY)


def _still(run: Path) -> None:
    """Takes what is different each time out of a run's files, so that a case can be made again."""
    for path in (run / "summary.json", run / "metrics.jsonl"):
        trees = [json.loads(line) for line in _documents(path)]
        path.write_text("\n".join(json.dumps(_without_times(tree)) for tree in trees) + "\n")


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_times(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_times(value) for value in tree]
    return round(tree, 3) and 0.5 if isinstance(tree, float) else tree


def _fail(run: Path) -> None:
    """A run that two ranks have begun and one has ended."""
    (run / "ranks").mkdir(parents=True)
    shutil.copyfile("run/config.toml", run / "config.toml")
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    for rank, role in enumerate(("parameter_server", "trainer")):
        record = {"world_rank": rank, "pid": 99_999_990 + rank, "host": "node", "pid_namespace": "pid:[1]"}
        record |= {"start_ticks": 1, "role": role, "role_rank": 0, "finished": False}
        (run / "ranks" / f"{rank}.json").write_text(json.dumps(record))
    failure = {
        "world_rank": 1,
        "role": "trainer",
        "code": 1,
        "message": "no loss today",
        "details": "",
        "time": 1.5,
    }
    (run / "failure.json").write_text(json.dumps(failure))
