"""Adult in TorchRec as a newcomer would write it: one process, tables and a tower of the demo's sizes.

    build/torchrec-venv/bin/python benchmarks/peers/torchrec_adult.py datasets/adult

Reads the files as they are; batch, passes, optimizers and rates are those of datasets/adult/adult.toml.
Prints the test AUC.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

NUMBERS = (0, 4, 10, 11, 12)
LOG1P = (10, 11)
WORDS = (1, 3, 5, 6, 7, 8, 9, 13)
DIM, BATCH, EPOCHS = 8, 256, 3


def read(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt") as file:
        return [line.rstrip(".\n").split(", ") for line in file if line.count(",") == 14]


class Tower(nn.Module):
    def __init__(self, names: list[str], sizes: list[int]) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"t_{n}", embedding_dim=DIM, num_embeddings=size, feature_names=[n])
                for n, size in zip(names, sizes, strict=True)
            ]
        )
        width = DIM * len(names) + len(NUMBERS)
        self.layers = nn.Sequential(
            nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        return self.layers(torch.cat([dense, self.tables(sparse).values()], dim=1))  # type: ignore[no-any-return]


def main() -> None:
    torch.manual_seed(1)
    folder = Path(sys.argv[1])
    train, test = (read(folder / name) for name in ("adult.data.gz", "adult.test.gz"))
    known = [{word: i for i, word in enumerate(sorted({row[c] for row in train + test}))} for c in WORDS]
    names = [f"f{c}" for c in WORDS]

    def arrays(rows: list[list[str]]) -> tuple[Tensor, Tensor, Tensor]:
        dense = np.array([[float(row[c]) for c in NUMBERS] for row in rows])
        for i, c in enumerate(NUMBERS):
            dense[:, i] = np.log1p(dense[:, i]) if c in LOG1P else dense[:, i]
        ids = np.array([[k[row[c]] for k, c in zip(known, WORDS, strict=True)] for row in rows])
        labels = np.array([[row[14] == ">50K"] for row in rows], np.float32)
        return torch.from_numpy(dense).float(), torch.from_numpy(ids), torch.from_numpy(labels)

    x, ids, y = arrays(train)
    mean, deviation = x.mean(0), x.std(0)
    model = Tower(names, [len(k) for k in known])
    rows = torch.optim.Adagrad(model.tables.parameters(), lr=0.05)
    weights = torch.optim.Adam(model.layers.parameters(), lr=1e-3)
    loss = nn.BCEWithLogitsLoss()

    def predict(x: Tensor, ids: Tensor) -> Tensor:
        lengths = torch.ones(ids.numel(), dtype=torch.int32)
        return model((x - mean) / deviation, KeyedJaggedTensor(names, ids.T.reshape(-1), lengths=lengths))  # type: ignore[no-any-return]

    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            rows.zero_grad()
            weights.zero_grad()
            loss(predict(x[batch], ids[batch]), y[batch]).backward()
            rows.step()
            weights.step()
    x, ids, y = arrays(test)
    with torch.no_grad():
        scores = predict(x, ids).numpy()[:, 0]
    positive = y.numpy()[:, 0] > 0
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    count = positive.sum()
    auc = (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))
    print(f"test AUC {auc:.4f}")


if __name__ == "__main__":
    main()
