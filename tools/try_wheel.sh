#!/usr/bin/env bash
# `make try-wheel`: installs the newest wheel of dist/ as somebody without a compiler would, and trains the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:?usage: tools/try_wheel.sh PYTHON [TORCH]}")
wheel=$(find dist -name 'persia_hpc-*.whl' -printf '%T@ %p\n' 2> /dev/null | sort -n | tail -1 | cut -d' ' -f2-)
[ -n "$wheel" ] || { echo "try-wheel: no wheel in dist/; make one with: make wheel" >&2; exit 1; }
wheel=$(realpath "$wheel")
place=build/try-wheel
rm -rf "$place"
mkdir -p "$place/tools"
# Nothing of this system but what runs scripts: no compiler, no MPI, no Python package.
for tool in bash sh env uname sed cat dirname basename readlink rm mkdir; do
    ln -s "$(command -v "$tool")" "$place/tools/$tool"
done
cd "$place"
"$python" -m venv environment
export PATH=$PWD/environment/bin:$PWD/tools
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CC CXX
began=$SECONDS
pip install --quiet "${2:-torch}"
echo "PyTorch took $((SECONDS - began)) s"
began=$SECONDS
pip install --quiet "$wheel[mpich]"
echo "all else took $((SECONDS - began)) s"
persia-hpc --version
persia-hpc doctor
began=$SECONDS
persia-hpc demo
echo "the demo took $((SECONDS - began)) s"
