#!/usr/bin/env bash
# Making the first optimizer imports PyTorch's compiler, which takes as long as importing PyTorch.
#
# Versions: torch 2.13.0, numpy 2.2.6.
# Behaviour: `import torch` leaves torch._dynamo out, which is slow to import. torch.optim.Optimizer.add_param_group
#   and the optimizers' set-up carry a decorator that imports it when they are first called: also in programs that
#   never compile, for any optimizer, with one parameter.
# Output seen: "import torch: False", "torch.nn, backward: False", "torch.optim.SGD: True", "at least 500 modules: True".
# Why it matters: every process that makes an optimizer pays for it: 0.8 to 1.3 times what `import torch` takes (4.0 in
#   a new environment, whose files aren't compiled yet), and some 800 modules more are read from a shared file system at
#   the start of a large job. Lazy imports of one's own don't help.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import sys
import time


def loaded() -> bool:
    return "torch._dynamo" in sys.modules


begin = time.perf_counter()
import torch

imported = time.perf_counter() - begin
print("import torch:", loaded())
model = torch.nn.Linear(2, 1)
model(torch.ones(3, 2)).sum().backward()
print("torch.nn, backward:", loaded())
before, begin = len(sys.modules), time.perf_counter()
torch.optim.SGD(model.parameters(), lr=0.1)
share = (time.perf_counter() - begin) / imported
print("torch.optim.SGD:", loaded())
print("at least 500 modules:", len(sys.modules) - before >= 500)
print(f"SGD took {share:.1f} times what `import torch` did, {len(sys.modules) - before} modules", file=sys.stderr)
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
import torch: False
torch.nn, backward: False
torch.optim.SGD: True
at least 500 modules: True
S
