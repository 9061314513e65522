"""Predictions take their place whole: a write that fails leaves an older file as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.errors import PersiaError
from persia_hpc.trainer.session import Session
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    data = write_tiny(folder / "train.h5", 60)
    ph.train(tiny_config(data, run_dir=str(folder / "run")), quiet=True)
    return folder / "run", data


@pytest.mark.parametrize("name", ["scores.csv", "scores.h5"])
def test_a_write_that_fails_leaves_the_older_file(
    name: str, run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = ph.load(run[0]), tmp_path / name
    assert loaded.predict([run[1]], out) == 60
    before = out.read_bytes()
    whole = Session.predictions

    def breaks(self: Session, *arguments: Any) -> Iterator[Any]:
        yield next(iter(whole(self, *arguments)))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Session, "predictions", breaks)
    with pytest.raises(PersiaError, match=f"{name}: can't write it: No space left on device; .*as it was"):
        loaded.predict([run[1]], out)
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


def test_below_hdf5_a_failed_write_is_one_error(
    run: tuple[Path, str],
) -> None:
    """HDF5 itself would end the process when it closes the file."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    scores = np.zeros((1, 1), np.float32)
    loaded = ph.load(run[0])
    with pytest.raises(OSError, match="No space left on device"):
        loaded._write_hdf5(iter([scores]), full)
