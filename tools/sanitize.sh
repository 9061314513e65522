#!/usr/bin/env bash
# Runs the native code under the compiler's sanitizers; one line a part, exit code 1 if any of them found something.
#   tools/sanitize.sh [cpp|all]    cpp: only the C++ tests; all (the default): also tests/native, with the
#                                  `python` on PATH
# The C++ tests run under ASan (memory) with UBSan (undefined behaviour), then under TSan (races between threads);
# tests/native under ASan with UBSan.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
part=${1:-all}
case $part in cpp | all) ;; *) echo "sanitize: got '$part', expected cpp or all" && exit 2 ;; esac
compiler=${CXX:-c++}
address=build/sanitize-address
scratch=build/sanitize-scratch
mkdir -p "$scratch"
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
code=0
launcher=()

# probe SANITIZERS: whether a program with them can be built, and run here.
probe() {
    local program=$scratch/probe-${1//,/-}
    echo 'int main() { return 0; }' >"$program.cpp"
    if ! "$compiler" -fsanitize="$1" "$program.cpp" -o "$program" >"$program.log" 2>&1; then
        tail -n 3 "$program.log"
        echo "sanitize: $compiler -fsanitize=$1 doesn't work: install the compiler's libasan, libubsan and libtsan" \
            "(Debian, Ubuntu: they come with g++; Fedora, RHEL: packages of these names; conda: libsanitizer)," \
            "or name a compiler that has them, CXX=..."
        exit 1
    fi
    "${launcher[@]}" "$program" >>"$program.log" 2>&1
}

refuse() {
    cat "$scratch/probe-$1.log"
    echo "sanitize: a program built with $compiler -fsanitize=${1//-/,} doesn't run here: run it where ptrace and" \
        "personality are allowed (docker: --security-opt seccomp=unconfined)"
    exit 1
}

# cpp_tests NAME SANITIZERS CMAKE_OPTION...
cpp_tests() {
    echo "sanitize $1: builds and runs the C++ tests ..."
    "${launcher[@]}" bash tools/native_tests.sh "sanitize-$1" -DCMAKE_BUILD_TYPE=Debug \
        -DPERSIA_HPC_SANITIZE="$2" -DPERSIA_HPC_CUDA=off "${@:3}" || code=1
}

# With a copy of the package that has the module of this build. Its sanitizers must be loaded before everything
# else; libstdc++ too, or no exception could be thrown.
python_tests() {
    local package=$scratch/package log=build/sanitize-python.log libraries
    echo "sanitize python: runs tests/native ..."
    rm -rf "$package"
    mkdir -p "$package" && cp -r src/persia_hpc "$package/" && rm -f "$package"/persia_hpc/*.so || return 1
    cp "$address"/_native*.so "$package/persia_hpc/" || return 1
    libraries=$(ldd "$address"/_native*.so | awk '/libasan|libstdc\+\+/ { print $3 }')
    if [[ $libraries != *libasan* ]]; then
        echo "sanitize python: $compiler's module has no libasan to load first: use GCC, CXX=g++"
        return 1
    fi
    # CPython leaks. test_memory_... measure what the process holds, and ASan adds to that.
    # An editable installation finds its own module before any path is looked at.
    if ! PYTHONPATH=$package PYTHONMALLOC=malloc ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 \
        LD_PRELOAD=${libraries//$'\n'/ } python -c '
import sys, pytest
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_")]
import persia_hpc._native as native
assert native.__file__.startswith(sys.argv[1]), f"got {native.__file__}, expected the one in {sys.argv[1]}"
sys.exit(pytest.main(sys.argv[2:]))' "$PWD/$package" -q -p no:cacheprovider tests/native -k 'not test_memory_' \
        >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "sanitize python: FAILED (whole log: $log)"
        return 1
    fi
    echo "sanitize python: $(tail -n 1 "$log")"
}

probe address,undefined || refuse address-undefined
# TSan needs memory where it expects it: where it isn't, programs start without randomised addresses.
if ! probe thread; then
    launcher=(setarch "$(uname -m)" -R)
    probe thread || refuse thread
fi
if [ "$part" = all ]; then
    pybind11=$(python -m pybind11 --cmakedir) || exit 1
    cpp_tests address address,undefined -DSKBUILD=ON -Dpybind11_DIR="$pybind11" \
        -DPython_EXECUTABLE="$(command -v python)"
    python_tests || code=1
else
    cpp_tests address address,undefined -DSKBUILD=OFF
fi
cpp_tests thread thread -DSKBUILD=OFF
[ $code -eq 0 ] && echo "sanitize: nothing found" || echo "sanitize: FAILED"
exit $code
