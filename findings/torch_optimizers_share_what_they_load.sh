#!/usr/bin/env bash
# An optimizer that loads the state of another one goes on to share its tensors, step count included.
#
# Versions: torch 2.13.0, numpy 2.2.6.
# Behaviour: Optimizer.load_state_dict converts each tensor to the parameter's device and dtype, which returns the very
#   same tensor where both fit already. state_dict() doesn't copy either. So after b.load_state_dict(a.state_dict()) a
#   step of b moves a's moments and counts as a step of a. Module.load_state_dict copies.
# Output seen: "a after its own step: step 1, moment 0.1", "a after a step of b: step 2, moment 0.59".
# Why it matters: a trial from the middle of a run (a learning rate to try, a fold, a model's copy that is trained on)
#   changes the run that it came from, without a word: Adam's bias correction and moments are then those of both. A state
#   that went through torch.save and torch.load is safe, as is copy.deepcopy of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import torch


def made() -> tuple[torch.nn.Parameter, torch.optim.Adam]:
    parameter = torch.nn.Parameter(torch.ones(1))
    return parameter, torch.optim.Adam([parameter])


def stepped(parameter: torch.nn.Parameter, optimizer: torch.optim.Adam, gradient: float) -> None:
    parameter.grad = torch.full((1,), gradient)
    optimizer.step()


def state(optimizer: torch.optim.Adam) -> str:
    (values,) = optimizer.state.values()
    return f"step {values['step']:g}, moment {values['exp_avg'].item():.3g}"


(p, a), (q, b) = made(), made()
stepped(p, a, 1.0)
print(f"a after its own step: {state(a)}")
b.load_state_dict(a.state_dict())
stepped(q, b, 5.0)
print(f"a after a step of b: {state(a)}")
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
a after its own step: step 1, moment 0.1
a after a step of b: step 2, moment 0.59
S
