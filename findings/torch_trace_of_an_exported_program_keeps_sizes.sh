#!/usr/bin/env bash
# TorchScript traced from an exported program with a dynamic batch returns as many results as the example had.
#
# Versions: torch 2.13.0, numpy 2.2.6.
# Behaviour: torch.export.export with a dynamic first dimension gives a program that takes any batch. torch.jit.trace of
#   its module() takes any batch too, but sizes that the program reads from its input are constants in the trace: a
#   reshape to [batch, -1] becomes one to [2, -1]. Tracing the original module keeps them dynamic.
# Output seen: with an example of 2 samples, for 5 samples: "exported: 5", "traced: 5", "exported, then traced: 2".
# Why it matters: who exports once and makes TorchScript of the result for an older service gets scores that mix
#   samples, without an error, whenever the batch isn't the example's and its size divides.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")


class Sums(nn.Module):
    def forward(self, vectors):
        return vectors.reshape(vectors.shape[0], -1).sum(1)


two, five = torch.ones(2, 3, 4), torch.ones(5, 3, 4)
program = torch.export.export(Sums(), (two,), dynamic_shapes={"vectors": {0: torch.export.Dim("batch")}})
print("exported:", len(program.module()(five)))
print("traced:", len(torch.jit.trace(Sums(), two)(five)))
print("exported, then traced:", len(torch.jit.trace(program.module(), two)(five)))
P
"$work/venv/bin/python" try.py 2>warnings | tee seen
diff seen - <<'S'
exported: 5
traced: 5
exported, then traced: 2
S
