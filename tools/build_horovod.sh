#!/usr/bin/env bash
# Builds Horovod 0.28.1 (MPI, PyTorch) into a Python environment that already has torch.
#
#   tools/build_horovod.sh [PYTHON]        PYTHON: the environment's interpreter (default: python3)
#
# mpicxx of the MPI that mpi4py uses must be first on PATH (the mpich wheel puts it beside PYTHON), or its
# folder in PERSIA_HPC_MPI_BIN. JOBS: compilers at a time (default: the cores, at most 8; each needs 1.5 GiB).
# The source package asks for C++14, which torch >= 2.1 refuses; upstream raised it to 17 after the
# last release (horovod/horovod PR 3998), so the same switch is made here.
set -euo pipefail
version=0.28.1

fail() { echo "build_horovod: $1" >&2; exit 1; }
python=$(command -v "${1:-python3}") || fail "there is no ${1:-python3}"
bin=$(cd "$(dirname "$python")" && pwd)  # absolute, but a venv's link is kept: resolving it would leave the venv
python=$bin/$(basename "$python")
PATH=${PERSIA_HPC_MPI_BIN:+$PERSIA_HPC_MPI_BIN:}$bin:$PATH

"$python" -c 'import torch' 2>/dev/null || fail "torch is not installed in $python; install it first"
command -v mpicxx >/dev/null || fail "no mpicxx on PATH; install the mpich wheel or load a site MPI module"
command -v c++ >/dev/null || command -v g++ >/dev/null || fail "no C++ compiler; install g++ (Debian: build-essential)"
cores=$(nproc 2>/dev/null || echo 2)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}
echo "building horovod $version with $(command -v mpicxx), $jobs jobs, into $python"

# What Horovod's own build and import need; setuptools 81 lost pkg_resources, which its build uses.
tools=("setuptools<81" wheel packaging cloudpickle psutil pyyaml cffi)
command -v cmake >/dev/null || tools+=(cmake)
"$python" -m pip install --quiet "${tools[@]}" || fail "could not install what horovod's build needs: ${tools[*]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --dest "$work" "horovod==$version" \
    || fail "could not download the source package of horovod $version"

install() {  # each time from a fresh source tree: CMake's cache remembers what failed
    rm -rf "$work/horovod-$version"
    tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
    cd "$work/horovod-$version"
    sed -i 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 17)/' CMakeLists.txt horovod/torch/CMakeLists.txt
    env "$@" HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITH_PYTORCH=1 \
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS="-j$jobs" \
        "$python" -m pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall .
}

# NCCL operations only when both CUDA and NCCL are there: a CPU-only torch can't use them. NCCL is that of
# HOROVOD_NCCL_HOME, else the one that torch's wheel brings, whose library lacks the name that linkers look for.
if command -v nvcc >/dev/null && "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    nccl=${HOROVOD_NCCL_HOME:-}
    wheel=$("$python" -c 'import importlib.util as u; s = u.find_spec("nvidia.nccl"); print(*(s.submodule_search_locations if s else ()))' 2>/dev/null || true)
    if [ -z "$nccl" ] && [ -e "$wheel/lib/libnccl.so.2" ]; then
        nccl=$work/nccl
        mkdir -p "$nccl/lib"
        ln -s "$wheel/include" "$nccl/include"
        ln -s "$wheel/lib/libnccl.so.2" "$nccl/lib/libnccl.so"
        ln -s "$wheel/lib/libnccl.so.2" "$nccl/lib/libnccl.so.2"
    fi
    if [ -n "$nccl" ]; then
        # Asked of nvcc itself: the one on PATH may be a script.
        cuda=${HOROVOD_CUDA_HOME:-$(nvcc --dryrun -c none.cu 2>&1 | sed -n 's/^#\$ TOP=//p')}
        if install HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_HOME="$nccl" HOROVOD_CUDA_HOME="$cuda" \
            && (cd / && "$python" -c 'import horovod.torch as h, sys; sys.exit(not h.nccl_built())'); then
            echo "built with NCCL of $nccl"
            exit 0
        fi
        echo "build_horovod: the build with NCCL failed (above); GPUs' gradients will go through MPI and host memory" >&2
    else
        echo "no NCCL: GPUs' gradients will go through MPI and host memory (HOROVOD_NCCL_HOME names one)"
    fi
fi
install || fail "the build of horovod $version failed (its log is above)"
