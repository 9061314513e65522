"""Where a file's records lie, as native code reads them past HDF5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.checkpoint.adopt import _chunks


class WithoutIteration:
    """A dataset's id as HDF5 before 1.14 has it."""

    def __init__(self, of: h5py.h5d.DatasetID):
        self._of = of

    def __getattr__(self, name: str) -> Any:
        if name == "chunk_iter":
            raise AttributeError(name)
        return getattr(self._of, name)


@dataclass
class Old:
    """A dataset of which HDF5 can't give all chunks at once."""

    data: h5py.Dataset

    @property
    def id(self) -> WithoutIteration:
        return WithoutIteration(self.data.id)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        return self.data.chunks  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("rows", "chunk_rows"), [(1000, 64), (1024, 64), (1, 64), (0, 64), (1000, None)])
def test_records_lie_where_it_says(tmp_path: Path, rows: int, chunk_rows: int | None, old: bool) -> None:
    path = tmp_path / "rows.h5"
    values = np.random.default_rng(1).integers(0, 1 << 60, rows, np.uint64)
    with h5py.File(path, "w") as file:
        chunks = None if chunk_rows is None else (chunk_rows,)
        file.create_dataset("other", data=values)
        file.create_dataset("x", data=values, chunks=chunks, maxshape=None if chunks is None else (None,))
    with h5py.File(path) as file:
        places, each = _chunks(Old(file["x"]) if old else file["x"])  # type: ignore[arg-type]
    assert each == (chunk_rows or rows)
    content = path.read_bytes()
    found = [np.frombuffer(content, np.uint64, min(each, rows - i * each), at) for i, at in enumerate(places)]
    assert np.concatenate([*found, np.empty(0, np.uint64)]).tolist() == values.tolist()


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_lacks_chunks_is_damaged(tmp_path: Path, old: bool) -> None:
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        data = file.create_dataset("x", (1000,), np.uint64, chunks=(100,))
        data[:200] = 1
        data[300:1000] = 1
        with pytest.raises(ValueError, match="lacks 1 chunks of 'records', the first is 2"):
            _chunks(Old(data) if old else data)  # type: ignore[arg-type]
