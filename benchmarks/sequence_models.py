"""SASRec and HSTU on MovieLens-1M by full ranking, beside a plain PyTorch loop at equal epochs.

    python benchmarks/sequence_models.py --data DIR --model sasrec|hstu [--plain] [--paired] [--epochs 5]
                                         [--tell 10]

The set-up is that of HSTU's public experiments: dim 50, two layers of one head, the last 200 ratings, dropout
0.2, 128 sampled items, vectors of length 1 and a temperature of 0.05, batches of 128 users, Adam (0.9, 0.98)
with 1e-3; a user's last item is ranked among all items but those of the history. Here sampled items are drawn
for a user and not for each position. With `--paired` the plain loop begins with our weights and rows and gets
our batches, in the order of the file, and our sampled items, without dropout: then only rounding differs.
DIR has `ratings.dat`, or `ratings_no_timestamp.dat.xz`: without times a
user's ratings count in the order of the file, so the published figures can't come out.
"""

from __future__ import annotations

import argparse
import lzma
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import persia_hpc as ph

sys.path.insert(0, str(Path(__file__).parents[1]))
from persia_hpc.config import load_config
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.catalogue import Drawing, open_catalogue
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

DIM, LENGTH, DRAWN, BATCH, TEMPERATURE, RATE = 50, 200, 128, 128, 0.05, 1e-3
STEPS = -(-6040 // BATCH)  # of an epoch of all users
# Of a layer's parameters here, the names in ours.
ALIKE = {"distances": "positions"}
for mine, theirs in (("first", "attention_norm"), ("second", "norm")):
    ALIKE |= {f"{mine}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
SCHEMA = DatasetSchema((FeatureSchema("history", multi=True), FeatureSchema("item")), (), ("rated",))


def read(folder: Path) -> list[list[int]]:
    """Returns the items of each user, in order of time where there are times."""
    whole, compressed = folder / "ratings.dat", folder / "ratings_no_timestamp.dat.xz"
    text = whole.read_text() if whole.exists() else lzma.decompress(compressed.read_bytes()).decode()
    users: dict[str, list[tuple[int, int]]] = {}
    for line in text.split("\n"):
        if line:
            user, item, _, *when = line.split("::")
            users.setdefault(user, []).append((int(when[0]) if when else 0, int(item)))
    return [[item for _, item in sorted(events, key=lambda event: event[0])] for events in users.values()]


def write(users: list[list[int]], folder: Path) -> None:
    """Writes train.h5, test.h5 and items.h5."""
    for name, left in (("train", 2), ("test", 1)):
        histories = [items[:-left] for items in users]
        events = np.concatenate(histories).astype(np.uint64)
        history = IdColumn.from_lengths(events, np.array([len(h) for h in histories]))
        ids = {"history": history, "item": IdColumn(np.array([items[-left] for items in users], np.uint64))}
        with DatasetWriter(folder / f"{name}.h5", SCHEMA) as writer:
            empty = np.empty((len(users), 0), np.float32)
            writer.write(SampleBatch(ids, empty, np.ones((len(users), 1), np.float32)))
    items = np.unique([item for user in users for item in user]).astype(np.uint64)
    with DatasetWriter(folder / "items.h5", DatasetSchema((FeatureSchema("item"),), (), ())) as writer:
        empty = np.empty((len(items), 0), np.float32)
        writer.write(SampleBatch({"item": IdColumn(items)}, empty, empty))


def settings(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the configuration."""
    return {
        "mode": "sync",
        "seed": options.seed,
        "run_dir": str(folder / "run"),
        "data": {
            "train": str(folder / "train.h5"),
            "test": str(folder / "test.h5"),
            "items": str(folder / "items.h5"),
            "item_feature": "item",
            "exclude_feature": "history",
            "batch_size": BATCH,
            "shuffle": not options.paired,
            "evaluate_batch_size": 512,
        },
        "tables": {
            "item": {
                "dim": DIM,
                "capacity": "32 MiB",
                "init": {"name": "normal", "std": 0.02},
                "optimizer": {"name": "adam", "lr": RATE, "beta2": 0.98},
            }
        },
        "features": {
            "item": {"table": "item"},
            "history": {"table": "item", "pooling": "jagged", "max_length": LENGTH},
            "drawn": {"sampled": {"like": "item", "count": DRAWN}},
        },
        "model": {"class": options.model, "dropout": 0.0 if options.paired else 0.2},
        "tasks": {
            "rated": {
                "loss": {
                    "name": "in_batch_softmax",
                    "temperature": TEMPERATURE,
                    "negatives": "sampled",
                }
            }
        },
        "train": {
            "epochs": options.epochs,
            "optimizer": {"name": "Adam", "lr": RATE, "betas": [0.9, 0.98]},
            "metrics": ["hr@10", "ndcg@10"],
            "threads": options.threads,
            "save": False,
        },
    }


class Told(ph.Callback):
    """Prints each evaluation."""

    def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
        """Prints it on one line."""
        if metrics["split"] == "valid":
            tell(run.step / STEPS, metrics)


def tell(epoch: float, metrics: dict[str, Any]) -> None:
    """Prints what was reached after an epoch."""
    found = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("hr@10", "ndcg@10"))
    print(f"epoch {epoch:g}: {found}; {time.process_time():.0f} s of processors", flush=True)


def train_ours(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Trains with this package in one process."""
    made = settings(folder, options)
    if options.tell:
        made["data"]["valid"] = made["data"]["test"]
        made["train"]["evaluate_every"] = options.tell * STEPS
    summary = ph.train(made, callbacks=[Told()], quiet=True)
    found = {name: summary["test"][name] for name in ("hr@10", "ndcg@10")}
    return found | {"users/s of training": summary["samples_per_second"]}


def begin_alike(model: Plain, numbers: dict[int, int], folder: Path, options: argparse.Namespace) -> Drawing:
    """Gives the plain model the weights and rows that ours begins with; returns what draws items."""
    still = settings(folder, options)
    still["tables"]["item"]["optimizer"] = {"name": "sgd", "lr": 0.0}
    still["train"] |= {"max_steps": 8, "optimizer": {"name": "SGD", "lr": 0.0}, "save": True}
    still["data"].pop("test")
    ph.train(still, quiet=True)
    run = ph.load(folder / "run")
    ours: Any = run.model()
    with torch.no_grad():
        model.items.weight[1:] = torch.from_numpy(run.rows("item", np.array(list(numbers), np.uint64)))
        model.positions.copy_(ours.positions)
        for mine, theirs in zip(model.layers, ours.blocks, strict=True):
            names = dict(theirs.named_parameters())
            for name, parameter in mine.named_parameters():
                parameter.copy_(names[ALIKE.get(name, name)])
    config = load_config(settings(folder, options))
    return Drawing(config, open_catalogue(config, SCHEMA, "data.train"))


class Block(nn.Module):
    """One layer of SASRec."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(DIM, eps=1e-8), nn.LayerNorm(DIM, eps=1e-8)
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.feed = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Dropout(0.2), nn.Linear(DIM, DIM))
        self.drop, self.dropout = nn.Dropout(0.2), 0.2

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer; [B, L, W] in and out."""
        q, k, v = self.qkv(self.first(x)).chunk(3, dim=2)
        dropout = self.dropout if self.training else 0.0
        x = x + self.drop(functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout))
        return x + self.drop(self.feed(self.second(x)))


class Layer(nn.Module):
    """One layer of HSTU."""

    def __init__(self) -> None:
        super().__init__()
        self.uvqk = nn.Linear(DIM, 4 * DIM, bias=False)
        nn.init.normal_(self.uvqk.weight, std=0.02)
        self.output = nn.Linear(DIM, DIM)
        nn.init.xavier_uniform_(self.output.weight)
        self.distances = nn.Parameter(0.02 * torch.randn(LENGTH))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer; [B, L, W] in and out."""
        u, v, q, k = functional.silu(self.uvqk(functional.layer_norm(x, (DIM,), eps=1e-6))).chunk(4, dim=2)
        places = torch.arange(x.shape[1])
        scores = q @ k.transpose(1, 2) + self.distances[(places[:, None] - places).clamp(min=0)]
        seen = (functional.silu(scores) / LENGTH).tril() @ v
        return x + self.output(self.drop(u * functional.layer_norm(seen, (DIM,), eps=1e-6)))


class Plain(nn.Module):
    """Either model on padded histories, with a table of all items; item 0 is padding."""

    def __init__(self, model: str, num_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, DIM, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(LENGTH, DIM) / math.sqrt(DIM))
        self.drop = nn.Dropout(0.2)
        self.layers = nn.Sequential(*(Layer() if model == "hstu" else Block() for _ in range(2)))
        self.norm = nn.LayerNorm(DIM, eps=1e-8) if model == "sasrec" else nn.Identity()

    def forward(self, history: Tensor) -> Tensor:
        """Computes the states; ids [B, L] in, [B, L, W] of length 1 out."""
        x = self.items(history) * math.sqrt(DIM) + self.positions[: history.shape[1]]
        return functional.normalize(self.norm(self.layers(self.drop(x))), dim=2)


def padded(histories: list[list[int]]) -> Tensor:
    """Returns ids [B, L], with zeros behind the last of each."""
    longest = max(len(h) for h in histories)
    return torch.tensor([h + [0] * (longest - len(h)) for h in histories])


def train_plain(users: list[list[int]], folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Trains in plain PyTorch."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    numbers = {item: i + 1 for i, item in enumerate(sorted({item for user in users for item in user}))}
    users = [[numbers[item] for item in user] for user in users]
    model = Plain(options.model, len(numbers))
    drawing = begin_alike(model, numbers, folder, options) if options.paired else None
    if drawing is not None:
        model.apply(without_dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    began = time.perf_counter()
    for epoch in range(options.epochs):
        order = np.arange(len(users)) if options.paired else rng.permutation(len(users))
        for begin in range(0, len(users), BATCH):
            batch = [users[u][:-1] for u in order[begin : begin + BATCH]]
            history = padded([items[:-1][-LENGTH:] for items in batch])
            following = padded([items[1:][-LENGTH:] for items in batch])
            states = model(history)
            right = functional.normalize(model.items(following), dim=2)
            drawn = torch.randint(1, len(numbers) + 1, (len(batch), DRAWN))
            if drawing is not None:
                empty = np.empty((len(batch), 0), np.float32)
                sample = drawing.add(SampleBatch({}, empty, empty), epoch, begin)
                drawn = torch.tensor([numbers[int(item)] for item in sample.ids["drawn"].values])
                drawn = drawn.view(-1, DRAWN)
            scores = states @ functional.normalize(model.items(drawn), dim=2).transpose(1, 2)
            scores = scores.masked_fill(drawn[:, None, :] == following[:, :, None], -torch.inf)
            scores = torch.cat([(states * right).sum(dim=2, keepdim=True), scores], dim=2)[following > 0]
            target = torch.zeros(len(scores), dtype=torch.int64)
            loss = functional.cross_entropy(scores / TEMPERATURE, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if options.tell and (epoch + 1) % options.tell == 0:
            tell(epoch + 1, ranked(model.eval(), users))
            model.train()
    speed = options.epochs * len(users) / (time.perf_counter() - began)
    return ranked(model.eval(), users) | {"users/s of training": speed}


def without_dropout(module: nn.Module) -> None:
    """Turns dropout off."""
    if isinstance(module, nn.Dropout):
        module.p = 0.0
    if isinstance(module, Block):
        module.dropout = 0.0


@torch.no_grad()
def ranked(model: Plain, users: list[list[int]]) -> dict[str, float]:
    """Returns the metrics of ranking each user's last item among all that aren't in the history."""
    items = functional.normalize(model.items.weight, dim=1)
    hits, gains = 0, 0.0
    for begin in range(0, len(users), 256):
        batch = users[begin : begin + 256]
        states = model(padded([user[:-1][-LENGTH:] for user in batch]))
        for user, state in zip(batch, states, strict=True):
            scores = items @ state[min(LENGTH, len(user) - 1) - 1]
            right = scores[user[-1]].item()
            scores[[0, *user]] = -torch.inf
            rank = int((scores > right).sum()) + 1
            hits += rank <= 10
            gains += 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    return {"hr@10": hits / len(users), "ndcg@10": gains / len(users)}


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of MovieLens-1M")
    parser.add_argument("--model", choices=["sasrec", "hstu"], required=True)
    parser.add_argument("--plain", action="store_true", help="the plain PyTorch loop")
    parser.add_argument("--paired", action="store_true", help="all but rounding alike")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tell", type=int, default=0, help="prints metrics after each so many epochs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--users", type=int, help="only the first ones, for a trial")
    options = parser.parse_args()
    users = read(options.data)[: options.users]
    with tempfile.TemporaryDirectory() as name:
        write(users, Path(name))
        begin = time.perf_counter(), time.process_time()
        found: dict[str, Any] = (
            train_plain(users, Path(name), options) if options.plain else train_ours(Path(name), options)
        )
        wall, processor = time.perf_counter() - begin[0], time.process_time() - begin[1]
    kind = "plain" if options.plain else "persia-hpc"
    print(
        f"{options.model} {kind}, {options.epochs} epochs, seed {options.seed}: "
        + ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
        + f"; {wall:.1f} s, {processor:.1f} s of processors"
    )


if __name__ == "__main__":
    main()
