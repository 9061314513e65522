"""Schemas of BARS' splits: made-up files of their layouts are prepared, and trained on as configured."""

from __future__ import annotations

import csv
import random
import re
import shutil
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.job.facts import make_facts
from persia_hpc.models import build_model
from persia_hpc.preprocess.table.schema import Ids, load_schema
from persia_hpc.samples.source import open_source
from persia_hpc.trainer.batch import make_inputs

BARS = Path(__file__).resolve().parents[2] / "datasets" / "bars"
SCHEMAS = sorted(BARS.glob("*/schema*.toml"))


def value(entry: Ids) -> str:
    if entry.part == "log_square":
        return random.choice(["", "-1", "0", "2", "3", "1000"])
    if entry.part == "number":
        return random.choice(["", "0", str(random.random())])
    return f"141021{random.randint(0, 23):02d}" if entry.part else str(random.randint(1, 9))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_published_splits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = path.parent.name
    random.seed(name)
    folder = tmp_path / "split"
    shutil.copytree(path.parent, folder)
    schema = load_schema(folder / path.name)
    for file in (file for files in schema.split.files.values() for file in files):
        rows = []
        for _ in range(200):
            length = random.randint(0, 5)
            row = {entry.column: str(random.random()) for entry in schema.dense.values()}
            row.update({entry.column: str(random.randint(0, 1)) for entry in schema.labels.values()})
            for entry in schema.ids.values():
                several = "^".join(value(entry) for _ in range(length))
                row.setdefault(entry.column, several if entry.separator else value(entry))
            rows.append(row)
        with (folder / file).open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    out = "data/" + path.stem.replace("schema", name)
    assert f"{path.name} --out {out} " in path.read_text()
    assert main(["preprocess", "table", str(folder / path.name), "--out", out]) == 0
    source = open_source([f"{out}/train.h5"])
    assert source.num_samples == 200
    multi = {feature.name for feature in source.schema.features if feature.multi}
    assert multi == {feature for feature, entry in schema.ids.items() if entry.multi}
    configs = [
        each
        for each in sorted(folder.glob("*.toml"))
        if not each.name.startswith("schema") and f'"{out}/train.h5"' in each.read_text()
    ]
    for each in configs:
        title, url = each.read_text().splitlines()[:2]
        assert re.match(rf"# \S+ on {name}: (gAUC 0\.\d+, )?AUC 0\.\d+, logloss 0\.\d+", title)
        assert re.search(rf"ranking/ctr/\w+/\w+_{name}(_00\d)?$", url)
        loaded = load_config(each)
        layout = make_facts(loaded, source.schema, {}).layout
        build_model(loaded.model.class_name, make_inputs(layout, source.schema), loaded.model.arguments)
    config = next((each for each in configs if each.stem == "din"), configs[0])
    assert main(["train", str(config), "--one-process", "--quiet", "--set", "train.epochs=1"]) == 0
