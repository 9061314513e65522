"""Tables of other programs begin a run bit for bit, and what doesn't fit is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import PersiaError
from tests.support.tiny import tiny_config, write_tiny

FROZEN = {
    f"tables.{name}": {"dim": dim, "capacity": "1 MiB", "optimizer": {"name": "sgd", "lr": 0.0}}
    for name, dim in (("default", 4), ("item", 4), ("user", 6))
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trained")
    data = write_tiny(folder / "train.h5", 60)
    changes = {"data.transform": "tests.support.transforms:high_ids"}
    ph.train(tiny_config(data, run_dir=str(folder / "run"), **changes), quiet=True)
    return folder / "run", data


def begun(source: Path, data: str, folder: Path, **changes: Any) -> Any:
    """Returns a run that began with tables and changed nothing."""
    keys = {**FROZEN, "checkpoint.init_from": str(source), **changes}
    ph.train(tiny_config(data, run_dir=str(folder / "new"), **keys), quiet=True)
    return ph.load(folder / "new")


@pytest.mark.parametrize("ids", ["uint64", "int64"])
@pytest.mark.parametrize("to", ["parquet", "safetensors"])
def test_a_round_trip_is_bit_equal(to: str, ids: str, trained: tuple[Path, str], tmp_path: Path) -> None:
    run, data = trained
    out = tmp_path / "out"
    assert main(["export", str(run), "--tables", to, "--ids", ids, "--out", str(out)]) == 0
    new, old = begun(out, data, tmp_path), ph.load(run)
    assert main(["export", str(run), "--tables", "safetensors", "--out", str(tmp_path / "ids")]) == 0
    from safetensors.numpy import load_file

    for name in old.tables:
        known = load_file(tmp_path / "ids" / f"{name}.safetensors")["ids"]
        assert (known >= 2**63).any()
        assert np.array_equal(new.rows(name, known), old.rows(name, known))


def test_checkpoint_exports_come_back_too(trained: tuple[Path, str], tmp_path: Path) -> None:
    run, data = trained
    out = tmp_path / "item.parquet"
    assert main(["checkpoint", "export", str(run), "--table", "item", "--ids", "--out", str(out)]) == 0
    ids = pl.read_parquet(out)["id"].to_numpy()
    assert np.array_equal(begun(out, data, tmp_path).rows("item", ids), ph.load(run).rows("item", ids))


def test_a_state_dict_of_torchrec_by_other_names_and_dims(trained: tuple[Path, str], tmp_path: Path) -> None:
    _, data = trained
    item, user = torch.randn(30, 4), torch.randn(20, 9)
    path = tmp_path / "model.pt"
    state = {
        "sparse_arch.embedding_bag_collection.embedding_bags.t_item.weight": item,
        "ec.embeddings.user.weight": user,
        "dense_arch.0.weight": torch.randn(3, 3),
    }
    torch.save(state, path)
    names = {"checkpoint.init_tables": {"item": "t_item"}}
    with pytest.raises(ph.UserError, match=r"table 'user' has dim 9 there, 6 here; .*init_dim = \"fit\""):
        begun(path, data, tmp_path / "refused", **names)
    run = begun(path, data, tmp_path, **names, **{"checkpoint.init_dim": "fit"})
    assert np.array_equal(run.rows("item", np.arange(30)), item.numpy())
    assert np.array_equal(run.rows("user", np.arange(20)), user[:, :6].numpy())
    torch.save({"embeddings.user.weight": user[:, :2]}, path)
    run = begun(path, data, tmp_path / "narrow", **{"checkpoint.init_dim": "fit"})
    assert np.array_equal(run.rows("user", np.arange(20))[:, :2], user[:, :2].numpy())
    assert not run.rows("user", np.arange(20))[:, 2:].any()


def parquet(path: Path, ids: Any, rows: Any) -> None:
    pl.DataFrame({"id": ids, "embedding": rows}).write_parquet(path)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    rows = np.zeros((2, 4), np.float32)
    made: dict[str, tuple[Path, str]] = {}

    def path(name: str, end: str, message: str) -> Path:
        where = folder / name
        where.mkdir()
        made[name] = (where, message)
        return where / f"item.{end}"

    save_file({"ids": np.array([3, 3]), "embeddings": rows}, path("twice", "safetensors", "item' twice"))
    save_file(
        {"ids": np.arange(2), "embeddings": rows * np.nan}, path("nan", "safetensors", "id 0 isn't finite")
    )
    save_file({"embeddings": rows}, path("no ids", "safetensors", "expected ids, I64 or U64"))
    save_file(
        {"ids": np.arange(2, dtype=np.int32), "embeddings": rows},
        path("int32", "safetensors", "type I32, expected"),
    )
    path("damaged", "safetensors", "can't be read").write_bytes(b"12345")
    path("damaged 2", "parquet", "can't be read").write_bytes(b"PAR1")
    path("damaged 3", "pt", "can't be read").write_bytes(b"PK")
    parquet(
        path("floats", "parquet", "expected columns `id`"),
        [1.0],
        pl.Series([[1.0] * 4], dtype=pl.List(pl.Float32)),
    )
    lists = pl.Series([[1.0] * 4, [1.0] * 3], dtype=pl.List(pl.Float32))
    parquet(path("lengths", "parquet", "lists of several lengths"), [1, 2], lists)
    missing = pl.Series([[1.0] * 4, None], dtype=pl.List(pl.Float32))
    parquet(path("missing", "parquet", "got missing values"), [1, 2], missing)
    torch.save({"a": torch.zeros(2, 4)}, path("no tables", "pt", "expected a state dict with tensors"))
    other = path("another", "parquet", "has none of the tables item, tags, user; it has: other")
    parquet(other.with_name("other.parquet"), [1], pl.Series([[1.0] * 4], dtype=pl.List(pl.Float32)))
    return made


def test_what_does_not_fit_is_refused(trained: tuple[Path, str], tmp_path: Path) -> None:
    _, data = trained
    for name, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(PersiaError) as caught:
            begun(path, data, tmp_path / f"run of {name}")
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint.init_parts": "dense"}, "has tables alone"),
        (
            {"checkpoint.init_tables": {"itm": "item"}},
            "there is no table 'itm'; this run has: item, tags, user",
        ),
        ({"checkpoint.init_tables": {"item": "itm"}}, "has no table 'itm'; it has: item"),
        (
            {"tables.item": {"dim": 4, "capacity": "1 MiB", "hash": {"rounds": 1, "size": 8}}},
            "'item' is hashed",
        ),
    ],
)
def test_wrong_settings(
    changes: dict[str, Any], message: str, trained: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "item.parquet"
    parquet(path, [1], pl.Series([[1.0] * 4], dtype=pl.List(pl.Float32)))
    with pytest.raises(ph.UserError, match=message):
        begun(path, trained[1], tmp_path, **changes)
