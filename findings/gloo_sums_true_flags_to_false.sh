#!/usr/bin/env bash
# A flag that is True on all ranks is False after gloo has summed it over 256 of them: bools are added as bytes.
#
# Versions: torch 2.13.0, numpy 2.2.6.
# Behaviour: all_reduce of a bool tensor (the default operation is SUM) adds its bytes. The tensor stays bool and looks
#   right: item(), ==, equal() and unique() call every byte but 0 True. So a count that 256 divides is False. NCCL's
#   part of PyTorch takes a maximum instead (ProcessGroupNCCL.cpp), and mpi4py refuses the sum. MAX and BOR are right.
#   Here two ranks sum a flag in place, which doubles the byte each time, as a flag that is kept from step to step does.
# Output seen: True after seven sums, with 128 in its byte; False after the eighth. With MAX it stays True, byte 1.
# Why it matters: "has any rank seen a NaN?", "does any rank stop?" is often a bool that is summed. On a laptop and with
#   NCCL it works; with gloo the answer to 256 ranks that all say yes is no, and no rank raises an error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def rank(number: int) -> None:
    store = dist.FileStore(str(Path("store").resolve()), RANKS)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS)
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        flag = torch.tensor([True])
        for sums in range(1, 9):
            dist.all_reduce(flag, op=operation)
            if number == 0 and sums in (1, 7, 8):
                byte = flag.view(torch.uint8).item()
                print(operation.name, sums, flag.dtype, flag.item(), torch.equal(flag, torch.tensor([True])), byte)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(rank, nprocs=RANKS)
P
GLOO_SOCKET_IFNAME=lo "$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
SUM 1 torch.bool True True 2
SUM 7 torch.bool True True 128
SUM 8 torch.bool False False 0
MAX 1 torch.bool True True 1
MAX 7 torch.bool True True 1
MAX 8 torch.bool True True 1
S
