#!/usr/bin/env bash
# Builds and runs the C++ tests; one line when all is well. Needs neither MPI nor Python.
#   tools/native_tests.sh [NAME CMAKE_OPTION...]    NAME: of a build of its own, in build/NAME
set -uo pipefail
cd "$(dirname "$0")/.." || exit
name=${1:-native-tests}
label=${name//-/ }
build=build/$name
log=$build.log
mkdir -p "$build"
started=$SECONDS
cores=$(nproc 2>/dev/null || echo 2)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}

read -r -a options <<<"${CMAKE_ARGS:-}"
options+=("${@:2}")

configure() { cmake -S . -B "$build" -DPERSIA_HPC_NATIVE_TESTS=ON "${options[@]}"; }
# A cache from a folder that was moved, or of another compiler, can't be reused: once more from nothing.
if ! { configure || { rm -rf "$build" && mkdir -p "$build" && configure; }; } >"$log" 2>&1 \
    || ! cmake --build "$build" -j "$jobs" >>"$log" 2>&1; then
    tail -n 30 "$log"
    echo "$label: FAILED to build (whole log: $log)"
    exit 1
fi
ctest --test-dir "$build" --output-on-failure --no-tests=error --timeout 600 -j "$jobs" >"$build/ctest.log" 2>&1
code=$?
cat "$build/ctest.log" >>"$log"
if [ $code -ne 0 ]; then
    tail -n 60 "$build/ctest.log"
    echo "$label: FAILED (whole log: $log)"
    exit 1
fi
echo "$label: $(grep -E 'tests? passed|tests passed' "$build/ctest.log"), $((SECONDS - started)) s"
