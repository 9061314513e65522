"""Accuracy and speed on real data: sync and hybrid beside a plain PyTorch loop, several seeds, in one run.

    python benchmarks/accuracy.py adult [--seeds 1 2 3]
    python benchmarks/accuracy.py criteo --data DIR/criteo_137k [--seeds 1 2 3]
    python benchmarks/accuracy.py storage --data DIR/criteo_137k        number formats, tables and wire
    python benchmarks/accuracy.py dense --data DIR/criteo_137k          number formats of dense gradients
    python benchmarks/accuracy.py products --data DIR/criteo_137k       DLRM's products on a CPU in bf16

Trains real jobs under mpiexec (`persia-hpc train`) and prints a Markdown table; --json FILE keeps all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-c", "import sys; from persia_hpc.cli import main; sys.exit(main())"]

# name -> (config, settings of each arm)
ADULT = {
    "hybrid (default, bound 4)": ("datasets/adult/adult.toml", {}),
    "sync": ("datasets/adult/adult.toml", {"mode": "sync", "staleness_bound": 0}),
    "Persia's tutorial, sync": ("datasets/adult/persia_tutorial.toml", {}),
}
CRITEO = {
    "sync": ("datasets/criteo/criteo.toml", {"mode": "sync", "staleness_bound": 0}),
    "hybrid, exact, bound 8": (
        "datasets/criteo/criteo.toml",
        {"mode": "hybrid", "exact": "true", "staleness_bound": 8},
    ),
}
SYNC = {"mode": "sync", "staleness_bound": 0}
STORAGE = {
    name: ("datasets/criteo/criteo.toml", {**SYNC, **settings})
    for name, settings in {
        "fp32": {},
        "fp16, state fp32": {"tables.default.storage": "fp16"},
        "bf16, state fp32": {"tables.default.storage": "bf16"},
        "fp16, state fp16": {"tables.default.storage": "fp16", "tables.default.state_storage": "same"},
        "bf16, state bf16": {"tables.default.storage": "bf16", "tables.default.state_storage": "same"},
        "fp32, wire fp16 and scaled_fp16": {"wire.rows": "fp16", "wire.gradients": "scaled_fp16"},
    }.items()
}
DENSE = {
    f"dense gradients {wire}": (
        "datasets/criteo/criteo.toml",
        {**SYNC, "train.reducer": "mpi", "train.dense_wire": wire},
    )
    for wire in ("fp32", "bf16", "fp16")
}
PRODUCTS = {
    f"DLRM's products in {name}": (
        "datasets/criteo/criteo.toml",
        {**SYNC, "model": '{ class = "dlrm", bottom = [64], hidden = [256, 128] }', "train.amp": amp},
    )
    for name, amp in (("fp32", "off"), ("bf16", "bf16"))
}
ARMS = {"adult": ADULT, "criteo": CRITEO, "storage": STORAGE, "dense": DENSE, "products": PRODUCTS}


def train(config: str, settings: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    command = [*CLI, "train", str(ROOT / config), "--quiet", "--run-dir", str(run_dir)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def plain_pytorch(
    folder: Path, seed: int, *, dim: int, lr: float, accumulator: float, batch: int, epochs: int
) -> dict[str, float]:
    """nn.Embedding(sparse) + torch.optim.Adagrad, MLP 256-128-1 + Adam(1e-3), one process, all in memory."""
    import torch
    from torch import nn

    from persia_hpc.samples.source import open_source
    from persia_hpc.trainer.label_metrics import auc, logloss

    torch.manual_seed(seed)
    files = sorted(str(p) for p in folder.glob("train*.h5"))
    train_source, test_source = open_source(files), open_source([str(folder / "test.h5")])
    train_data = train_source.read(0, train_source.num_samples)
    test_data = test_source.read(0, test_source.num_samples)
    vocabularies = [np.unique(column.values) for column in train_data.ids.values()]

    def encode(data: Any) -> torch.Tensor:
        columns = []
        for vocabulary, column in zip(vocabularies, data.ids.values(), strict=True):
            index = np.searchsorted(vocabulary, column.values).clip(max=len(vocabulary) - 1)
            # 0 is the row that stays zero: ids never seen in training.
            columns.append(np.where(vocabulary[index] == column.values, index + 1, 0))
        return torch.tensor(np.stack(columns, 1))

    tables = nn.ModuleList(nn.Embedding(len(v) + 1, dim, sparse=True, padding_idx=0) for v in vocabularies)
    for table in tables:
        nn.init.uniform_(table.weight, -0.01, 0.01)
        with torch.no_grad():
            table.weight[0].zero_()
    width = dim * len(tables) + train_data.dense.shape[1]
    mlp = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
    sparse = torch.optim.Adagrad(tables.parameters(), lr=lr, initial_accumulator_value=accumulator)
    dense = torch.optim.Adam(mlp.parameters(), lr=1e-3)

    def forward(ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(tables)]
        return mlp(torch.cat([x, *rows], dim=1))

    ids, x, y = encode(train_data), torch.tensor(train_data.dense), torch.tensor(train_data.labels)
    begin = time.perf_counter()
    for _ in range(epochs):
        for part in torch.randperm(len(y)).split(batch):
            loss = nn.functional.binary_cross_entropy_with_logits(forward(ids[part], x[part]), y[part])
            loss.backward()
            sparse.step()
            dense.step()
            sparse.zero_grad()
            dense.zero_grad()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        logits = forward(encode(test_data), torch.tensor(test_data.dense)).numpy()[:, 0]
    labels = test_data.labels[:, 0]
    return {
        "auc": auc(logits, labels),
        "logloss": logloss(logits, labels),
        "samples_per_second": epochs * len(y) / seconds,
    }


def mean_and_spread(values: list[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", choices=tuple(ARMS))
    parser.add_argument("--data", type=Path, help="folder with criteo_137k.tsv.xz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(options, Path(scratch))
    print(f"| {options.arms} | test AUC | test logloss | samples/s |\n|---|---|---|---|")
    for arm, each in figures.items():
        cells = [
            mean_and_spread([f[key] for f in each], digits)
            for key, digits in (("auc", 4), ("logloss", 4), ("samples_per_second", 0))
        ]
        print(f"| {arm} | {' | '.join(cells)} |")
    first, *others = [arm for arm in figures if arm in ARMS[options.arms]]
    print()
    for arm in others if options.arms != "adult" else []:
        gaps = [f["auc"] - base["auc"] for f, base in zip(figures[arm], figures[first], strict=True)]
        print(f"AUC of '{arm}' less that of '{first}', paired by seed: {mean_and_spread(gaps, 5)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def run(options: argparse.Namespace, scratch: Path) -> dict[str, list[dict[str, float]]]:
    arms = ARMS[options.arms]
    prepared = ROOT / "data" / ("adult" if options.arms == "adult" else "criteo")
    if options.arms == "adult":
        loop = {"dim": 8, "lr": 0.05, "accumulator": 0.0, "batch": 256, "epochs": 3}
        subprocess.run([*CLI, "preprocess", "adult", "--out", str(prepared)], check=True, cwd=ROOT)
        tutorial = ["--variant", "persia_tutorial", "--out", str(ROOT / "data" / "adult_persia_tutorial")]
        subprocess.run([*CLI, "preprocess", "adult", *tutorial], check=True, cwd=ROOT)
    else:
        loop = {"dim": 16, "lr": 0.01, "accumulator": 0.01, "batch": 512, "epochs": 3}
        source = ["--input", str(options.data / "criteo_137k.tsv.xz"), "--out", str(prepared)]
        subprocess.run([*CLI, "preprocess", "criteo", *source], check=True, cwd=ROOT)
    figures: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    plain = "plain PyTorch, one process"
    if options.arms in ("adult", "criteo"):
        figures[plain] = []
    for seed in options.seeds:
        for arm, (config, settings) in arms.items():
            summary = train(config, {**settings, "seed": seed}, scratch / f"{seed}-{list(arms).index(arm)}")
            figures[arm].append({**summary["test"], "samples_per_second": summary["samples_per_second"]})
        if plain in figures:
            figures[plain].append(plain_pytorch(prepared, seed, **loop))
    return figures


if __name__ == "__main__":
    main()
