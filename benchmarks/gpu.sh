#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds, tests, measures.
#
#   benchmarks/gpu.sh pack [WHEELS]    on a machine with a network: fetches what a bare GPU machine lacks
#   benchmarks/gpu.sh [WHEELS]         on the GPU machine, which needs no network then
#
# WHEELS: a folder (default build/gpu-wheels). The GPU machine has Python with a CUDA torch, nvcc and a C++
# compiler, and the Python version of `pack`; what else is missing is installed from WHEELS into build/gpu-venv. Results: $OUT, else build/gpu.
# A part that fails doesn't keep the next from running; the exit code says whether all of them went well.
# QUICK=1 measures fewer cases. PYTHON: the interpreter that has torch (default: python3).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
mode=run
if [ "${1:-}" = pack ]; then
    mode=pack
    shift
fi
wheels=${1:-build/gpu-wheels}
python=${PYTHON:-python3}
# Also what builds need, as there is no network for a build to fetch it from.
needed=(mpich mpi4py h5py hdf5plugin polars tqdm numpy pybind11 scikit-build-core pathspec packaging cmake ninja
    hypothesis pytest wheel cloudpickle psutil pyyaml cffi)

if [ "$mode" = pack ]; then
    mkdir -p "$wheels"
    "$python" -m pip download --quiet --only-binary=:all: --dest "$wheels" "${needed[@]}" "setuptools<81" || exit
    "$python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --dest "$wheels" horovod==0.28.1 || exit
    du -sh "$wheels"
    exit
fi

out=${OUT:-build/gpu}
venv=build/gpu-venv
mkdir -p "$out"
failed=()
part() {
    local name=$1 started=$SECONDS
    shift
    if "$@" >"$out/$name.log" 2>&1; then
        printf 'gpu  %-16s ok      %4d s\n' "$name" $((SECONDS - started))
    else
        printf 'gpu  %-16s FAILED  %4d s  (%s)\n' "$name" $((SECONDS - started)) "$out/$name.log"
        tail -n 15 "$out/$name.log"
        failed+=("$name")
    fi
}

environment() {
    [ -x "$venv/bin/python" ] || "$python" -m venv --system-site-packages "$venv" || return
    # What the machine has is kept: only torch's own numpy fits it.
    local missing=() name module
    for name in "${needed[@]}" "setuptools<81"; do
        module=${name%%<*}
        "$venv/bin/python" -m pip show --quiet "$module" 2>/dev/null || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] || "$venv/bin/python" -m pip install --no-index --find-links "$wheels" "${missing[@]}"
}

package() {
    "$venv/bin/python" -m pip install --no-build-isolation --no-deps --no-index \
        -C cmake.define.PERSIA_HPC_CUDA=on -C build-dir=build/gpu-build .
}

horovod() {
    "$venv/bin/python" -c 'import horovod.torch' 2>/dev/null && return
    PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/$wheels bash tools/build_horovod.sh "$venv/bin/python"
}

kernel_tests() { "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/native/test_pool_cuda.py tests/unit/test_trainer_dense_graphs.py; }

sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer"; return 0; }
    for tool in memcheck racecheck synccheck; do
        echo "== $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$venv/bin/python" -m pytest -q -x -p no:cacheprovider \
            tests/native/test_pool_cuda.py -k "cuda and (many_ids or factor or no_row)" || return
    done
}

# Real jobs with the trainers on the GPU: one, and two that share it, whose results are those of the CPU.
jobs() { "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/system/test_gpu.py; }

export PATH=$PWD/$venv/bin:$PATH
part environment environment
part package package
part horovod horovod
part doctor persia-hpc doctor
part kernel-tests kernel_tests
part jobs jobs
part sanitizer sanitizer
if [ -n "${QUICK:-}" ]; then
    part kernels persia-hpc bench gpu --batches 16384 --dims 16 128 --wires fp16 --json "$out/kernels.json"
    part train python benchmarks/gpu_train.py --dims 128 --batches 65536 --samples 6000000 --json "$out/train.json"
else
    part kernels persia-hpc bench gpu --json "$out/kernels.json"
    part train python benchmarks/gpu_train.py --json "$out/train.json"
    for exponent in 1.05 1.2; do  # with rows that stay on the GPU, and without
        part "train-reuse-$exponent" python benchmarks/gpu_train.py --cases dlrm --dims 128 --workers 3 --reuse-steps 0 3 6 \
            --exponent "$exponent" --folder "build/gpu-train-$exponent" --json "$out/train-reuse-$exponent.json"
    done
    part train-graphs python benchmarks/gpu_train.py --cuda-graphs --dims 128 --json "$out/train-graphs.json"
fi
cat "$out"/kernels.log "$out"/train*.log 2>/dev/null | grep -E '^(\||pass=)'
[ ${#failed[@]} -eq 0 ] || { echo "gpu: FAILED: ${failed[*]}"; exit 1; }
