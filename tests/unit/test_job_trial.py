"""Steps in this process: what fails says what it is."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import DataError, UserError
from persia_hpc.job.trial import Trial
from tests.support.tiny import tiny_config, write_tiny


def test_damaged_data_are_not_the_models_fault(tmp_path: Path) -> None:
    path = Path(write_tiny(tmp_path / "train.h5", 400))
    with h5py.File(path) as file:
        at = file["dense"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as raw:
        raw.seek(at)
        byte = raw.read(1)[0]
        raw.seek(at)
        raw.write(bytes([byte ^ 0xFF]))
    with pytest.raises(DataError, match=r"train\.h5") as caught:
        Trial(load_config(tiny_config(str(path)))).steps(13)
    assert "model" not in str(caught.value)


def test_ids_are_counted_as_workers_see_them(tmp_path: Path) -> None:
    """After the transform: one that leaves a single id leaves a single row in each table."""
    data = write_tiny(tmp_path / "train.h5", 400)
    changed = tiny_config(data, **{"data.transform": "tests.support.transforms:one_id"})
    assert set(Trial(load_config(changed)).count(32).rows) == {1.0}
    assert min(Trial(load_config(tiny_config(data))).count(32).rows) > 1.0


def test_too_little_memory_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    data = write_tiny(tmp_path / "train.h5", 100)
    config = tiny_config(data, **{"data.transform": "tests.support.transforms:one_id"})
    trial = Trial(load_config(config))
    monkeypatch.setattr(EmbeddingWorker, "prepare", short)
    for call in (lambda: trial.count(32), trial.first_batch, lambda: trial.steps(1)):
        with pytest.raises(MemoryError, match="9 TiB"):
            call()
    monkeypatch.setattr("torch.nn.Linear.__init__", short)
    with pytest.raises(MemoryError, match="9 TiB"):
        Trial(load_config(config)).prepare()


def test_a_transform_that_fails_is_named(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 100)
    trial = Trial(load_config(tiny_config(data, **{"data.transform": "os:getcwd"})))
    for call in (lambda: trial.count(32), trial.first_batch):
        with pytest.raises(UserError, match="'os:getcwd' fails on the first samples: TypeError"):
            call()
