#!/usr/bin/env bash
# Environments in which other projects are measured, apart from this one's own: build/torchrec-venv and
# build/paddle-venv. Called by `make bench-peers`; those that are there already stay as they are.
# ARGS: python [torch requirement]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
torch=${2:-torch==2.13.0}

# make_venv NAME MODULE REQUIREMENTS...: build/NAME-venv in which MODULE imports; requirements as for install.
make_venv() {
    local venv=build/$1-venv log=build/$1-setup.log module=$2 versions="${*:3}"
    if [ "$(cat "$venv/done" 2>/dev/null)" = "$versions" ]; then
        echo "$venv is ready"
        return
    fi
    mkdir -p build
    echo "making $venv; log: $log"
    {
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/pip" install --upgrade pip
        install "$venv/bin/pip" "${@:3}"
        "$venv/bin/python" -c "import $module"
    } >"$log" 2>&1 || {
        tail -n 20 "$log"
        echo "could not make $venv; the whole log: $log"
        exit 1
    }
    echo "$versions" >"$venv/done"
    echo "$venv is ready"
}

# install PIP REQUIREMENTS... [--no-deps REQUIREMENTS...]
install() {
    local pip=$1 plain=() bare=() without=
    for word in "${@:2}"; do
        if [ "$word" = --no-deps ]; then
            without=yes
        elif [ -n "$without" ]; then
            bare+=("$word")
        else
            plain+=("$word")
        fi
    done
    "$pip" install "${plain[@]}"
    [ ${#bare[@]} -eq 0 ] || "$pip" install --no-deps "${bare[@]}"
}

# TorchRec's own requirements would pull CUDA builds; other versions of fbgemm don't load on this torch.
make_venv torchrec torchrec "$torch" numpy iopath tensordict torchmetrics==1.0.3 tqdm pyre-extensions \
    --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0
# 2.6 is the last release whose wheel has the parameter server.
make_venv paddle paddle paddlepaddle==2.6.2 'numpy<2' protobuf==4.25.8 setuptools
