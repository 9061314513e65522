#!/usr/bin/env bash
# Leaving a process that did nothing but import PyTorch takes a quarter of its CPU time; gc.freeze() saves it.
#
# Versions: torch 2.13.0, numpy 2.2.6.
# Behaviour: when Python ends it collects garbage, and goes through all objects that `import torch` has made. They are
#   not garbage, and nothing is won by it. gc.freeze() after the import takes them out of the collector's sight: then
#   leaving costs no more than os._exit(). Switching the collector off during the import alone changes next to nothing.
# Output seen: "leaving takes 15 % or more: True", "frozen, it takes less than a third of that: True".
# Why it matters: 0.4 s of 1.6 s of CPU time, for each rank of a job and for each short command that imports torch; on
#   few cores ranks that end together wait for each other. A profile of the import doesn't show it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import resource
import statistics
import subprocess
import sys

PROGRAMS = {
    "plain": "import torch",
    "frozen": "import gc, torch; gc.freeze()",
    "os._exit": "import os, torch; os._exit(0)",
}


def cpu_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


turns = [{name: cpu_seconds(program) for name, program in PROGRAMS.items()} for _ in range(8)][1:]
median = {name: statistics.median(turn[name] for turn in turns) for name in PROGRAMS}
print({name: f"{seconds:.2f} s" for name, seconds in median.items()}, file=sys.stderr)
leaving, frozen = (median[name] - median["os._exit"] for name in ("plain", "frozen"))
print("leaving takes 15 % or more:", leaving >= 0.15 * median["plain"])
print("frozen, it takes less than a third of that:", frozen < leaving / 3)
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
leaving takes 15 % or more: True
frozen, it takes less than a third of that: True
S
