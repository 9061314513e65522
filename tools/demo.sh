#!/usr/bin/env bash
# `make demo`: real data, one command to prepare it, one to train. Both can be typed as they are here, the second
# without --set where Horovod is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
persia-hpc preprocess adult --out data/adult
persia-hpc train datasets/adult/adult.toml --set "train.reducer=${1:-horovod}"
