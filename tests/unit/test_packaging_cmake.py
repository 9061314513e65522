"""How the native modules are built, by what CMake writes when it configures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mpi import REPOSITORY

pybind11 = pytest.importorskip("pybind11")


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("make"), reason="needs cmake and make")
@pytest.mark.parametrize(
    ("build_type", "stripped"), [("Release", True), ("Debug", False), ("RelWithDebInfo", False)]
)
def test_symbols_stay_where_traces_are_to_name_them(tmp_path: Path, build_type: str, stripped: bool) -> None:
    options = [f"-DCMAKE_BUILD_TYPE={build_type}", "-DSKBUILD=ON", "-DPERSIA_HPC_CUDA=off"]
    options += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command = ["cmake", "-G", "Unix Makefiles", "-S", str(REPOSITORY), "-B", str(tmp_path), *options]
    subprocess.run(command, check=True, capture_output=True)
    rules = (tmp_path / "CMakeFiles" / "_native.dir" / "build.make").read_text()
    assert ("/strip " in rules) == stripped
