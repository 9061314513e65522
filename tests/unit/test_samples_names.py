"""The filters of HDF5 that hdf5plugin brings, wherever it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hdf5plugin

ROUND_TRIP = """
import h5py, numpy as np
from persia_hpc.samples.names import compression_options, default_compression
import hdf5plugin
assert "[of] nobody" in hdf5plugin.PLUGIN_PATH
with h5py.File("ids.h5", "w") as file:
    file.create_dataset("ids", data=np.arange(1000), chunks=(100,), **compression_options("lz4"))
with h5py.File("ids.h5") as file:
    print(default_compression(), file["ids"][:].sum())
"""


def test_filters_are_found_in_a_folder_with_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "home [of] nobody"
    folder.mkdir()
    (folder / "hdf5plugin").symlink_to(Path(hdf5plugin.__file__).parent)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "lz4 499500\n", "")
