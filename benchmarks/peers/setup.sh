#!/usr/bin/env bash
# The environment in which peers of other projects are measured: build/peers-venv, apart from this project's own.
# Called by `make bench-peers`; does nothing when it is there already. ARGS: python [torch requirement]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
torch=${2:-torch==2.13.0}
venv=build/peers-venv
log=build/peers-setup.log
versions="$torch fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0 iopath"

if [ "$(cat "$venv/done" 2>/dev/null)" = "$versions" ]; then
    echo "$venv is ready ($versions)"
    exit 0
fi
mkdir -p build
echo "making $venv ($versions); log: $log"
{
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --upgrade pip
    "$venv/bin/pip" install "$torch"
    # Their own requirements would pull CUDA builds; other versions of fbgemm don't load on this torch.
    "$venv/bin/pip" install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0
    "$venv/bin/pip" install numpy iopath tensordict torchmetrics==1.0.3 tqdm pyre-extensions
    "$venv/bin/python" -c 'import torchrec'
} >"$log" 2>&1 || {
    tail -n 20 "$log"
    echo "could not make $venv; the whole log: $log"
    exit 1
}
echo "$versions" >"$venv/done"
echo "$venv is ready"
