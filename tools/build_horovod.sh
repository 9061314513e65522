#!/usr/bin/env bash
# Builds Horovod 0.28.1 (MPI, PyTorch) into a Python environment that already has torch.
#
#   tools/build_horovod.sh [--plan] [PYTHON]      PYTHON: the environment's interpreter (default: python3)
#
# --plan only prints what would be built with what. mpicxx of the MPI that mpi4py uses must be first on PATH
# (the mpich wheel puts it beside PYTHON), or its folder in PERSIA_HPC_MPI_BIN.
# JOBS: compilers at a time (default: the cores, at most 16, and one for every 1.5 GiB of available memory).
# HOROVOD_BUILD_CUDA_CC_LIST: what the CUDA kernels are compiled for, like 80,90 (default: the GPUs that torch
# sees here; without any 80,90, the last one also as PTX for newer GPUs). Horovod itself would take every
# architecture that nvcc knows, each twice.
# Without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER, with the source package of Horovod and wheels of
# what --plan calls packages, unless the environment has them.
# The source package asks for C++14, which torch >= 2.1 refuses; upstream raised it to 17 after the
# last release (horovod/horovod PR 3998), so the same switch is made here, to 20 for torch >= 2.14.
set -euo pipefail
version=0.28.1

fail() { echo "build_horovod: $1" >&2; exit 1; }
plan=
[ "${1:-}" != --plan ] || { plan=yes; shift; }
python=$(command -v "${1:-python3}") || fail "there is no ${1:-python3}"
bin=$(cd "$(dirname "$python")" && pwd)  # absolute, but a venv's link is kept: resolving it would leave the venv
python=$bin/$(basename "$python")
PATH=${PERSIA_HPC_MPI_BIN:+$PERSIA_HPC_MPI_BIN:}$bin:$PATH

# torch's version, its CUDA ("None" in a build for CPUs), and the GPUs that it sees.
found=$("$python" -c '
import torch
count = torch.cuda.device_count() if torch.version.cuda else 0
seen = sorted({"%d%d" % torch.cuda.get_device_capability(i) for i in range(count)}, key=int)
print(torch.__version__, torch.version.cuda, ",".join(seen) or "none")' 2>/dev/null) \
    || fail "torch is not installed in $python; install it first"
read -r torch torch_cuda seen <<<"${found##*$'\n'}"
IFS=. read -r major minor _ <<<"$torch"
standard=17
if [ "$major" -gt 2 ] || { [ "$major" -eq 2 ] && [ "${minor%%[!0-9]*}" -ge 14 ]; }; then standard=20; fi

cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2)  # nproc obeys OpenMP
room=$(awk '/^MemAvailable:/ { print int($2 / 1572864) }' /proc/meminfo 2>/dev/null || true)
jobs=$((cores < 16 ? cores : 16))
[ -z "$room" ] || [ "$room" -ge "$jobs" ] || jobs=$((room > 1 ? room : 1))
jobs=${JOBS:-$jobs}

# NCCL operations only when both CUDA and NCCL are there: a CPU-only torch can't use them. NCCL is that of
# HOROVOD_NCCL_HOME, else the one that torch's wheel brings.
nccl= wheel= architectures=
if [ "$torch_cuda" != None ] && command -v nvcc >/dev/null; then
    nccl=${HOROVOD_NCCL_HOME:-}
    if [ -z "$nccl" ]; then
        wheel=$("$python" -c 'import importlib.util as u; s = u.find_spec("nvidia.nccl"); print(*(s.submodule_search_locations if s else ()))' 2>/dev/null || true)
        [ -e "$wheel/lib/libnccl.so.2" ] || wheel=
    fi
    default=$seen
    [ "$seen" != none ] || default=80,90
    architectures=${HOROVOD_BUILD_CUDA_CC_LIST:-$default}
fi

# What Horovod's own build and import need; setuptools 81 lost pkg_resources, which its build uses. pycparser is
# cffi's, and stands here for who carries wheels.
packages=("setuptools<81" wheel packaging cloudpickle psutil pyyaml cffi pycparser)
command -v cmake >/dev/null || packages+=(cmake)

if [ -n "$plan" ]; then
    printf '%s\n' "horovod=$version" "torch=$torch" "standard=$standard" "jobs=$jobs" "nccl=${nccl:-${wheel:-none}}" \
        "architectures=${architectures:-none}" "packages=${packages[*]}"
    exit 0
fi
command -v mpicxx >/dev/null || fail "no mpicxx on PATH; install the mpich wheel or load a site MPI module"
command -v c++ >/dev/null || command -v g++ >/dev/null || fail "no C++ compiler; install g++ (Debian: build-essential)"
echo "building horovod $version with $(command -v mpicxx), C++$standard, $jobs jobs, into $python"
"$python" -m pip install --quiet "${packages[@]}" || fail "could not install what horovod's build needs: ${packages[*]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --dest "$work" "horovod==$version" \
    || fail "could not download the source package of horovod $version"

install() {  # each time from a fresh source tree: CMake's cache remembers what failed
    rm -rf "$work/horovod-$version"
    tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
    cd "$work/horovod-$version"
    sed -i "s/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD $standard)/" CMakeLists.txt horovod/torch/CMakeLists.txt
    # The kernels as C++11 fail with GCC 14 (horovod/horovod PR 4313); as C++17 they compile with older ones too.
    sed -i 's/set(CMAKE_CUDA_STANDARD 11)/set(CMAKE_CUDA_STANDARD 17)/' horovod/common/ops/cuda/CMakeLists.txt
    env "$@" HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITH_PYTORCH=1 \
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS="-j$jobs" \
        "$python" -m pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall .
}

if [ -n "$architectures" ]; then
    if [ -n "$wheel" ]; then  # its library lacks the name that linkers look for
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
            HOROVOD_BUILD_CUDA_CC_LIST="$architectures" \
            && (cd / && "$python" -c 'import horovod.torch as h, sys; sys.exit(not h.nccl_built())'); then
            echo "built with NCCL of $nccl, for $architectures"
            exit 0
        fi
        echo "build_horovod: the build with NCCL failed (above); GPUs' gradients will go through MPI and host memory" >&2
    else
        echo "no NCCL: GPUs' gradients will go through MPI and host memory (HOROVOD_NCCL_HOME names one)"
    fi
fi
install || fail "the build of horovod $version failed (its log is above)"
