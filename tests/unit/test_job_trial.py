"""Steps in this process: what fails says what it is."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import DataError
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
