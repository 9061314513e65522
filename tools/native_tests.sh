#!/usr/bin/env bash
# Builds and runs the C++ tests; one line when all is well. Needs neither MPI nor Python.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
build=build/native-tests
log=build/native-tests.log
mkdir -p "$build"
started=$SECONDS
cores=$(nproc 2>/dev/null || echo 2)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}

read -r -a options <<<"${CMAKE_ARGS:-}"

configure() { cmake -S . -B "$build" -DPERSIA_HPC_NATIVE_TESTS=ON "${options[@]}"; }
# A cache from a folder that was moved, or of another compiler, can't be reused: once more from nothing.
if ! { configure || { rm -rf "$build" && mkdir -p "$build" && configure; }; } >"$log" 2>&1 \
    || ! cmake --build "$build" -j "$jobs" >>"$log" 2>&1; then
    tail -n 30 "$log"
    echo "native tests: FAILED to build (whole log: $log)"
    exit 1
fi
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" >"$build/ctest.log" 2>&1
code=$?
cat "$build/ctest.log" >>"$log"
if [ $code -ne 0 ]; then
    tail -n 60 "$build/ctest.log"
    echo "native tests: FAILED (whole log: $log)"
    exit 1
fi
echo "native tests: $(grep -E 'tests? passed|tests passed' "$build/ctest.log"), $((SECONDS - started)) s"
