#!/usr/bin/env bash
# Seconds from nothing to the test AUC of Adult, by part: from our wheel, from a clone, and by TorchRec's recipe.
#
#   benchmarks/from_nothing.sh download WHEELS [OUR_WHEEL]   gets all that the others need, so that no network counts
#   benchmarks/from_nothing.sh wheel|clone|torchrec WHEELS [PYTHON]
#
# PIP: what installs, say "uv pip" (default: pip). Everything is made in a temporary folder and removed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
what=${1:?usage: benchmarks/from_nothing.sh download|wheel|clone|torchrec WHEELS [PYTHON]}
mkdir -p "${2:?the folder of wheels}"
wheels=$(realpath "$2")
torch='torch==2.13.0'
# TorchRec's own requirements would pull CUDA builds; other versions of fbgemm don't load on this torch.
theirs=(iopath tensordict torchmetrics==1.0.3 tqdm pyre-extensions)
bare=(fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0)

if [ "$what" = download ]; then
    requirements=$(cd "$root" && python3 -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
extras = project["project"]["optional-dependencies"]
print(*project["project"]["dependencies"], *extras["mpich"], *project["build-system"]["requires"], "cmake", "ninja", sep="\n")')
    mapfile -t requirements <<<"$requirements"
    python3 -m pip download -q -d "$wheels" "$torch" "${requirements[@]}" "${theirs[@]}" numpy pip uv
    python3 -m pip download -q -d "$wheels" --no-deps "${bare[@]}"
    [ -z "${3:-}" ] || cp "$3" "$wheels"
    exit 0
fi

python=${3:-python3}
export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_INDEX=1 UV_FIND_LINKS=$wheels
unset PIP_EXTRA_INDEX_URL
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
export UV_CACHE_DIR=$place/uv
begin=$(date +%s.%N)
last=$begin
passed() {  # the seconds since the last part
    now=$(date +%s.%N)
    awk -v what="$1" -v a="$last" -v b="$now" 'BEGIN { printf "%-34s %6.1f s\n", what, b - a }'
    last=$now
}
auc() { grep -o -i 'test[a-z: ]*auc *[=:]* *0\.[0-9]*' "$1" | tail -1; }
install() { ${PIP:-pip} install -q "$@"; }

case $what in
    wheel | torchrec)
        "$python" -m venv environment
        export PATH=$place/environment/bin:$PATH VIRTUAL_ENV=$place/environment
        passed 'environment'
        install "$torch" numpy
        passed 'PyTorch'
        if [ "$what" = wheel ]; then
            install "$(ls "$wheels"/persia_hpc-*.whl)[mpich]"
            passed 'persia-hpc and the rest'
            persia-hpc demo >said 2>&1 || { cat said; exit 1; }
        else
            install "${theirs[@]}"
            install --no-deps "${bare[@]}"
            passed 'TorchRec, FBGEMM and the rest'
            python "$root/benchmarks/peers/torchrec_adult.py" "$root/datasets/adult" >said 2>&1 || { cat said; exit 1; }
        fi
        passed "training, $(auc said)"
        ;;
    clone)
        git clone -q "$root" clone
        passed 'git clone'
        make -C clone demo PYTHON="$python" >said 2>&1 || { cat said; exit 1; }
        grep set-up said
        passed "make demo, $(auc said)"
        ;;
esac
last=$begin
passed 'all'
