#!/usr/bin/env bash
# Rebuilds the extension in place (src/persia_hpc/_native*.so), for work on native/ without a new install.
#   tools/dev_native.sh [BUILD_DIR]        use with PYTHONPATH=src
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=${1:-build/dev}
# Files apart: what has changed is soon compiled.
cmake -S . -B "$build" -DCMAKE_UNITY_BUILD=OFF -DSKBUILD=ON -DPERSIA_HPC_NATIVE_TESTS=ON -DPython_EXECUTABLE="$(realpath -s "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
cmake --build "$build" -j2
for so in "$build"/_native*.so "$build"/_cuda*.so; do
    [ -e "$so" ] || continue  # no nvcc
    cp "$so" "src/persia_hpc/.$(basename "$so").new"  # then renamed: a running process keeps the old one
    mv "src/persia_hpc/.$(basename "$so").new" "src/persia_hpc/$(basename "$so")"
done
