#!/usr/bin/env bash
# Tests and measures the GPU trainers on a GPU machine, which needs no network, in four parts.
#
#   benchmarks/gpu.sh pack                           where there is a network: makes build/gpu-pack
#   benchmarks/gpu.sh smoke|jobs|train|rest [...]    on the GPU machine, with build/gpu-pack beside the sources
#   benchmarks/gpu.sh sizes                          what the pack holds; fails above 25 MB
#   benchmarks/gpu.sh environment                    only build/gpu-venv, which each part makes if it isn't there
#
# The GPU machine has a Python (python3, or PYTHON) with a CUDA torch, numpy, h5py, mpi4py, pytest and
# hypothesis. A compiler, nvcc, scikit-build-core and pybind11 are needed only if the pack's wheel of this package
# doesn't fit (CUDA=off builds it without kernels, where there is no nvcc). The parts and their options:
# benchmarks/gpu_parts.py. Each leaves three files in OUT (default build/gpu): PART.log, PART.json, PART.tar.gz.
#
# Variables of `pack`: PYTHON_VERSION, the GPU machine's (3.12); ARCHITECTURES of its GPU, as CMake has them (90);
# HOROVOD=no leaves out what two trainers on one GPU need; PYTHON, an interpreter of PYTHON_VERSION.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=build/gpu-pack
venv=build/gpu-venv
most=25000000

fail() { echo "gpu.sh: $1" >&2; exit 1; }

# Names what the package is built from, so that a wheel of other sources is found out.
sources() {
    find native src CMakeLists.txt pyproject.toml -regex '.*\.\(py\|pyi\|cpp\|h\|cu\|cuh\|txt\|toml\)' -print0 \
        | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

fresh() { [ "$(cat "$pack/sources" 2>/dev/null)" = "$(sources)" ]; }

sizes() {
    local total=0 size file
    for file in "$pack"/*; do
        [ -f "$file" ] || fail "there is no $pack: run benchmarks/gpu.sh pack first"
        size=$(stat -c %s "$file")
        total=$((total + size))
        printf '%8.1f MB  %s\n' "$(awk "BEGIN {print $size / 1e6}")" "${file##*/}"
    done
    printf '%8.1f MB  in all\n' "$(awk "BEGIN {print $total / 1e6}")"
    fresh || echo "gpu.sh: the sources have changed since: the GPU machine will build the package itself"
    [ "$total" -le "$most" ] || fail "$pack has $total bytes, expected at most $most: HOROVOD=no makes it smaller"
}

find_python() {  # the wanted interpreter, if it runs: a name on PATH may be pyenv's, of a version that isn't chosen
    local version=$1 candidate pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
    for candidate in "${PYTHON:-python$version}" python3 "$pyenv/$version".*/bin/python; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
            command -v "$candidate"
            return
        fi
    done
}

make_pack() {
    local version=${PYTHON_VERSION:-3.12} python tools=build/gpu-pack-tools platforms=() n
    python=$(find_python "$version")
    [ -n "$python" ] || echo "gpu.sh: there is no Python $version here: the GPU machine will build the package itself"
    [ -z "$python" ] || command -v nvcc >/dev/null \
        || { echo "gpu.sh: there is no nvcc here: the GPU machine will build the package itself"; python=; }
    rm -rf "$pack"
    mkdir -p "$pack"
    if [ "$(cat "$tools/complete" 2>/dev/null)" != "${python:-python3}" ]; then  # new headers would mean a new build
        rm -rf "$tools"
        "${python:-python3}" -m venv "$tools"
        # setuptools 81 lost what Horovod's setup.py imports, which pip runs to fetch it.
        "$tools/bin/python" -m pip install --quiet pybind11 scikit-build-core cmake ninja wheel packaging \
            "setuptools<81"
        echo "${python:-python3}" >"$tools/complete"
    fi
    for n in 12 17 24 27 28 31 34; do
        platforms+=(--platform "manylinux_2_${n}_x86_64")
    done
    fetch() {
        "$tools/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
            --implementation cp --platform manylinux2014_x86_64 "${platforms[@]}" --dest "$pack" "$@"
    }
    fetch mpich
    if [ "${HOROVOD:-yes}" != no ]; then
        fetch "setuptools<81" wheel cffi pycparser
        "$tools/bin/python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation \
            --dest "$pack" horovod==0.28.1
    fi
    sources >"$pack/sources"
    if [ -n "$python" ]; then
        PATH=$PWD/$tools/bin:$PATH "$tools/bin/python" -m pip wheel --quiet --no-build-isolation --no-deps \
            --wheel-dir "$pack" -C cmake.define.PERSIA_HPC_CUDA=on \
            -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=${ARCHITECTURES:-90}" \
            -C "build-dir=build/gpu-pack-$version" .
    fi
    sizes
}

# The pack's wheels on top of the packages that PYTHON has. It may be an environment's: a plain
# --system-site-packages would take those of the Python below that environment.
environment() {
    local python=${PYTHON:-python3} here mark wheels=() modules="persia_hpc._native"
    mark=$("$python" -c 'import sys; print(sys.version, sys.prefix)') || fail "$python doesn't run"
    mark+=" CUDA=${CUDA:-on} $(sources) $({ cat "$pack"/* 2>/dev/null || true; } | cksum)"
    [ "$(cat "$venv/complete" 2>/dev/null)" != "$mark" ] || { echo "$venv is there"; return; }
    rm -rf "$venv"
    "$python" -m venv --without-pip "$venv"
    here=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys
for path in sys.path:
    if path.endswith(("site-packages", "dist-packages")):
        print(f"import site; site.addsitedir({path!r})")' >"$here/parent.pth"
    for wheel in "$pack"/*.whl; do
        case ${wheel##*/} in
            "*.whl") echo "gpu.sh: there is no wheel in $pack: everything must be on this machine" ;;
            persia_hpc-*) fresh && prebuilt=$wheel || echo "gpu.sh: ${wheel##*/} is of other sources: it isn't used" ;;
            *) wheels+=("$wheel") ;;
        esac
    done
    install() {
        "$venv/bin/python" -m pip install --quiet --no-index --no-deps --ignore-installed \
            --no-warn-script-location "$@"
    }
    [ ${#wheels[@]} -eq 0 ] || install "${wheels[@]}"
    [ "${CUDA:-on}" = off ] || modules+=", persia_hpc._cuda"
    loads() { "$venv/bin/python" -c "import $modules"; }
    if [ -z "${prebuilt:-}" ] || ! install "$prebuilt" || ! loads; then
        echo "gpu.sh: building the package here"
        PATH=$PWD/$venv/bin:$PATH install --no-build-isolation -C "cmake.define.PERSIA_HPC_CUDA=${CUDA:-on}" \
            -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=${ARCHITECTURES:-90}" -C build-dir=build/gpu-build .
        loads
    fi
    echo "$mark" >"$venv/complete"
}

case ${1:-} in
    pack) make_pack ;;
    sizes) sizes ;;
    environment) environment ;;
    sources) sources ;;
    smoke | jobs | train | rest) exec "${PYTHON:-python3}" benchmarks/gpu_parts.py "$@" ;;
    *) fail "got '${1:-}', expected pack, smoke, jobs, train, rest, sizes or environment" ;;
esac; exit  # on this line, so that nothing is read of a file that changes while this runs
