#!/usr/bin/env bash
# TorchRec's AUC of scores with few different values depends on the order of the samples.
#
# Versions: torchrec 1.8.0, fbgemm-gpu-cpu 1.8.0, torch 2.13.0, torchmetrics 1.0.3, scikit-learn 1.7.2, numpy 2.2.6.
# Behaviour: compute_auc sorts the samples by score and adds a trapezoid for each sample, so it takes equal scores in
#   the order in which the sort leaves them, which is not a random one. scikit-learn takes a threshold for each different
#   score, which counts pairs of equal scores as half.
# Output seen, 100,000 samples of two scores: "positives first: 0.5, negatives first: 0.7, scikit-learn: 0.6"; of a
#   different score for each sample all three agree: "positives first: 0.8, negatives first: 0.8, scikit-learn: 0.8".
# Why it matters: a small model (a tree, one coarse feature, a head that has saturated in bfloat16) gives few different
#   scores, and evaluation data are often stored class by class. Its AUC is then wrong by 0.1 in either direction, and
#   nothing says so. Shuffled data hide it. Don't compare such an AUC with one that was computed by thresholds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6 scikit-learn==1.7.2 iopath tensordict \
    torchmetrics==1.0.3 tqdm pyre-extensions
"$work/venv/bin/pip" install --quiet --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0
cd "$work"
cat > try.py <<'P'
import torch
from sklearn.metrics import roc_auc_score
from torchrec.metrics.auc import compute_auc


def auc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return compute_auc(1, [scores[None]], [labels[None]], [torch.ones_like(labels)[None]]).item()


def report(scores: torch.Tensor, chances: torch.Tensor) -> None:
    labels = (torch.rand(len(scores), generator=generator) < chances).float()
    positives_first = labels.argsort(descending=True, stable=True)
    first, last = (auc(scores[order], labels[order]) for order in (positives_first, positives_first.flip(0)))
    right = roc_auc_score(labels.numpy(), scores.numpy())
    print(f"positives first: {first:.1f}, negatives first: {last:.1f}, scikit-learn: {right:.1f}")


generator = torch.Generator().manual_seed(1)
two = 0.3 + 0.2 * (torch.arange(100_000) % 2)
report(two, two)
many = torch.rand(100_000, generator=generator)
report(many, many)
P
"$work/venv/bin/python" try.py 2> /dev/null | tee seen
diff seen - <<'S'
positives first: 0.5, negatives first: 0.7, scikit-learn: 0.6
positives first: 0.8, negatives first: 0.8, scikit-learn: 0.8
S
