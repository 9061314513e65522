#!/usr/bin/env bash
# W&B offline: what a run logged long before it was killed is lost, though a process of W&B's own outlives it.
#
# Version: wandb 0.31.0.
# Behaviour: run.log() hands a step to wandb-core, a process apart. It writes the run's file in blocks of 32 KiB, each
#   when it is full, and doesn't write what it has when time passes or when the run's process is gone: only finish()
#   does. A step of one number takes some 290 bytes, so up to 110 of them, whatever time they took, are in no file.
# Output seen: "steps in the file before the kill, 4 s after the last: 0", "after the kill: 0", "of a run that finished:
#   60".
# Why it matters: nodes of a cluster without network use this mode, and jobs there end by SIGKILL (memory, time, a dead
#   node). A training that logs once a minute loses its last two hours; one that ends in its first hour leaves nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet wandb==0.31.0
cd "$work"
cat > train.py <<'P'
import os
import signal
import sys
import time

import wandb

quiet = wandb.Settings(console="off", disable_git=True, x_disable_stats=True)
run = wandb.init(mode="offline", project="one", dir=sys.argv[1], settings=quiet)
for step in range(60):
    run.log({"loss": 1 / (step + 1)})
time.sleep(4)
if sys.argv[1] == "killed":
    print("ready", flush=True)
    signal.pause()
run.finish()
P
cat > steps.py <<'P'
"""Counts the steps in the file of the run in a folder: records in blocks, as LevelDB's log has them."""
import pathlib
import struct
import sys

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 1 << 15, 7  # checksum, length and kind: whole, first, middle, last
(path,) = pathlib.Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")
data, at, parts, steps = path.read_bytes(), HEADER, b"", 0
while at + HEADER <= len(data):
    if BLOCK - at % BLOCK < HEADER:
        at += BLOCK - at % BLOCK
        continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    parts += data[at + HEADER : at + HEADER + length]
    at += HEADER + length
    if kind in (1, 4):
        steps += Record.FromString(parts).WhichOneof("record_type") == "history"
        parts = b""
print(steps)
P
export WANDB_SILENT=true WANDB_ERROR_REPORTING=false HOME="$work"
mkdir killed finished
touch said
"$work/venv/bin/python" train.py killed > said 2> log &
until grep -q ready said; do kill -0 $! || { cat log; exit 1; }; sleep 0.2; done
{
    echo "steps in the file before the kill, 4 s after the last: $("$work/venv/bin/python" steps.py killed)"
    kill -KILL $!
    wait $! 2>/dev/null || true
    sleep 5
    echo "after the kill: $("$work/venv/bin/python" steps.py killed)"
    "$work/venv/bin/python" train.py finished > /dev/null 2>&1
    echo "of a run that finished: $("$work/venv/bin/python" steps.py finished)"
} | tee seen
diff seen - <<'S'
steps in the file before the kill, 4 s after the last: 0
after the kill: 0
of a run that finished: 60
S
