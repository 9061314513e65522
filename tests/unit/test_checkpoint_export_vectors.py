"""Vectors with their ids, in the formats of others, are what the run looks up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from tests.support.retrieval import ITEMS, KINDS, ids_of, retrieval_config, write_retrieval
from tests.support.tiny import tiny_config, write_tiny

IDS = [7, 2**63 + 5, 2**64 - 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_tiny(folder / "train.h5", 60)
    changes = {"data.transform": "tests.support.transforms:high_ids"}
    ph.train(tiny_config(data, run_dir=str(folder / "run"), **changes), quiet=True)
    return folder / "run"


def read(folder: Path, to: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    if to == "parquet":
        frame = pl.read_parquet(folder / f"{name}.parquet")
        return frame["id"].to_numpy(), frame["embedding"].to_numpy()
    if to == "safetensors":
        from safetensors.numpy import load_file

        found = load_file(folder / f"{name}.safetensors")
        return found["ids"], found["embeddings"]
    import faiss

    index = faiss.read_index(str(folder / f"{name}.faiss"))
    ids = faiss.vector_to_array(index.id_map)
    return ids, np.stack([index.reconstruct(int(i)) for i in ids])


@pytest.mark.parametrize("ids", ["uint64", "int64"])
@pytest.mark.parametrize("to", ["parquet", "safetensors", "faiss"])
def test_tables_are_what_look_ups_give(to: str, ids: str, run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--tables", to, "--ids", ids, "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "tables.json").read_text())
    loaded = ph.load(run)
    assert set(about["tables"]) == set(loaded.tables)
    assert about["metric"] == "inner_product"
    for name, table in about["tables"].items():
        numbers, rows = read(tmp_path, to, name)
        assert numbers.dtype == ("int64" if to == "faiss" else ids) == about["ids"]
        assert len(numbers) == len(np.unique(numbers)) == table["rows"] > 10
        assert np.array_equal(rows, loaded.rows(name, numbers.view(np.uint64)))
        assert rows.shape[1] == table["dim"]
    assert (read(tmp_path, to, "user")[0].view(np.uint64) >= 2**63).any()


def test_for_cosine_vectors_have_length_1(run: Path, tmp_path: Path) -> None:
    command = ["export", str(run), "--tables", "faiss", "--table", "item", "--metric", "cosine"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "tables.json").read_text())["normalized"] is True
    ids, rows = read(tmp_path, "faiss", "item")
    expected = ph.load(run).rows("item", ids.view(np.uint64))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert rows == pytest.approx(expected, abs=1e-6)
    import faiss

    near = faiss.read_index(str(tmp_path / "item.faiss")).search(rows, 1)[1][:, 0]
    assert (near == ids).mean() > 0.9


@pytest.mark.parametrize("to", ["parquet", "safetensors", "faiss"])
def test_items_are_what_scores_are_products_with(to: str, tmp_path: Path) -> None:
    """The scores of one user with all items are inner products of some vector with those exported."""
    ph.train(retrieval_config(write_retrieval(tmp_path), tmp_path / "run"), quiet=True)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--tables", to, "--items", "--out", str(out)]) == 0
    assert json.loads((out / "tables.json").read_text())["tables"]["items"]["dim"] == 8
    ids, rows = read(out, to, "items")
    order = np.arange(ITEMS)
    assert ids.view(np.uint64).tolist() == ids_of(order).tolist()
    features = {"user": [3] * ITEMS, "history": [[int(ids_of(order)[1])]] * ITEMS}
    scores = ph.load(tmp_path / "run").score({**features, "item": ids_of(order), "kind": order % KINDS})[:, 0]
    query = np.linalg.lstsq(rows, scores, rcond=None)[0]
    assert scores == pytest.approx(rows @ query, abs=1e-5)
    assert np.ptp(scores) > 1e-3


@pytest.mark.parametrize("to", ["safetensors", "faiss"])
def test_a_full_disk_is_one_line(
    to: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import faiss
    import safetensors.numpy

    def fail(*_: Any) -> None:  # as they do
        raise (
            safetensors.SafetensorError("No space left")
            if to == "safetensors"
            else RuntimeError("No space left")
        )

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    monkeypatch.setattr(faiss, "write_index", fail)
    assert main(["export", str(run), "--tables", to, "--out", str(tmp_path)]) == 1
    assert re.search(rf"error: .*\.{to} can't be written: No space left$", capsys.readouterr().err.strip())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--to and --tables are missing"),
        (["--items"], "--table and --items say which vectors"),
        (["--tables", "parquet", "--items", "--table", "user"], "expected one of them"),
        (["--tables", "parquet", "--table", "usr"], "there is no table 'usr'; this checkpoint has: item"),
        (["--tables", "parquet", "--items"], "the run has no catalogue"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(run), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
