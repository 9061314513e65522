"""DIN, ESMM and the two-tower model on MovieLens-1M beside a plain PyTorch loop of the published formula.

    python benchmarks/published_histories.py --data DIR [--models din esmm two_tower] [--seeds 1 2 3]
                                             [--users 1500]

DIR holds movielens_1m. Paired as in published.py: the loop begins with our rows and weights, and both take
the samples in one order, drawn by the seed, so that only rounding differs. A sample is a rating with the
user's last 20 movies before it, in the order of the file, as there are no timestamps. A tenth of the samples,
drawn, is the test. The label of DIN and two_tower is 4 stars or more. ESMM has it for the click, and 5 stars
for a click with a conversion: nested labels, if not of a shop. two_tower trains on samples that are liked,
with the batch's others as negatives, and ranks all movies for those of the test. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import lzma
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import persia_hpc as ph
from persia_hpc.arrays import Array
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.trainer.label_metrics import auc

LENGTH, DIM, BATCH, HIDDEN, ATTENTION, WIDTH, TEMPERATURE = 20, 16, 1024, [64, 64], [36], 64, 0.1
ROWS = {"lr": 0.05, "initial_accumulator_value": 0.01}
EPOCHS = {"din": 1, "esmm": 1, "two_tower": 5}
SINGLE = ["user", "gender", "age", "occupation", "movie"]
USED = {"din": ["user", "movie", "history"], "esmm": SINGLE, "two_tower": ["user", "history", "movie"]}
LABELS = {"din": ["liked"], "esmm": ["liked", "loved"], "two_tower": ["liked"]}
MODELS: dict[str, dict[str, Any]] = {
    "din": {"class": "din", "hidden": HIDDEN, "attention": ATTENTION},
    "esmm": {"class": "esmm", "hidden": HIDDEN},
    "two_tower": {"class": "two_tower", "items": ["movie"], "queries": ["user", "history"], "hidden": [64]},
}
SPEEDS = ("samples_per_second", "samples_per_processor_second")
SCHEMA = DatasetSchema(
    (*(FeatureSchema(name) for name in SINGLE), FeatureSchema("history", multi=True)), (), ("liked", "loved")
)


def read(folder: Path, num_users: int | None) -> SampleBatch:
    """Returns all ratings but the first of each user, with the movies before each."""
    people, ids, histories, stars = {}, [], [], []
    for line in lzma.decompress((folder / "users.dat.xz").read_bytes()).decode().split():
        user, gender, age, occupation, _ = line.split("::")
        people[int(user)] = (1 + (gender == "F"), int(age), int(occupation) + 1)
    seen: dict[int, list[int]] = {}
    text = lzma.decompress((folder / "ratings_no_timestamp.dat.xz").read_bytes()).decode()
    for line in text.split():
        user, movie, rating = map(int, line.split("::")[:3])
        if num_users is not None and user > num_users:
            continue
        before = seen.setdefault(user, [])
        if before:
            ids.append((user, *people[user], movie))
            histories.append(before[-LENGTH:])
            stars.append(rating)
        before.append(movie)
    columns = np.array(ids, np.uint64)
    found = {name: IdColumn(np.ascontiguousarray(columns[:, i])) for i, name in enumerate(SINGLE)}
    events = np.concatenate(histories).astype(np.uint64)
    found["history"] = IdColumn.from_lengths(events, np.array([len(h) for h in histories]))
    labels = np.array(stars)[:, None] >= np.array([[4, 5]])
    return SampleBatch(found, np.empty((len(stars), 0), np.float32), labels.astype(np.float32))


def write(path: Path, samples: SampleBatch, schema: DatasetSchema = SCHEMA) -> None:
    with DatasetWriter(path, schema) as writer:
        writer.write(samples)


def divided(samples: SampleBatch, model: str, seed: int, folder: Path) -> tuple[SampleBatch, SampleBatch]:
    """Writes train.h5, in the seed's order, test.h5 and items.h5; returns the first two."""
    order = np.random.default_rng(0).permutation(samples.num_samples)
    test, train = np.split(order, [len(order) // 10])
    train = np.random.default_rng(seed).permutation(train)
    if model == "two_tower":
        train, test = (rows[samples.labels[rows, 0] == 1] for rows in (train, test))
    found = samples.take(train), samples.take(test[:10_000])
    for name, part in zip(("train", "test"), found, strict=True):
        write(folder / f"{name}.h5", part)
    items, counts = np.unique(found[0].ids["movie"].values, return_counts=True)
    empty = np.empty((len(items), 0), np.float32)
    write(
        folder / "items.h5",
        SampleBatch({"movie": IdColumn(items)}, empty, empty, weight=counts.astype(np.float32)),
        DatasetSchema((FeatureSchema("movie"),), (), (), has_weight=True),
    )
    return found


def settings(model: str, seed: int, folder: Path) -> dict[str, Any]:
    std = 0.1 if model == "two_tower" else 1e-4
    found: dict[str, Any] = {
        "mode": "sync",
        "seed": seed,
        "run_dir": str(folder / "run"),
        "data": {
            "train": str(folder / "train.h5"),
            "test": str(folder / "test.h5"),
            "batch_size": BATCH,
            "shuffle": False,
            "features": USED[model],
        },
        "tables": {
            "default": {
                "dim": DIM,
                "capacity": "64 MiB",
                "init": {"name": "normal", "std": std},
                "optimizer": {"name": "adagrad", **ROWS},
            },
            "movie": {},
        },
        "features": {"movie": {"table": "movie"}},
        "tasks": {name: {"loss": "bce"} for name in LABELS[model]},
        "model": MODELS[model],
        "train": {
            "epochs": EPOCHS[model],
            "optimizer": {"name": "Adam", "lr": 1e-3},
            "threads": 1,
            "save": False,
        },
    }
    if "history" in USED[model]:
        pooling = "jagged" if model == "din" else "mean"
        found["features"]["history"] = {"table": "movie", "pooling": pooling}
    if model == "two_tower":
        found["data"] |= {"items": str(folder / "items.h5"), "item_feature": "movie"}
        found["tasks"]["liked"]["loss"] = {
            "name": "in_batch_softmax",
            "temperature": TEMPERATURE,
            "logq": "weights",
        }
        found["train"]["metrics"] = ["recall@10", "ndcg@10"]
    return found


class Processor(ph.Callback):
    """Counts the processors' seconds of training, which tell more than the clock beside other work."""

    def on_start(self, run: Any) -> None:
        self.began = time.process_time()

    def on_step(self, run: Any) -> None:
        self.seconds = time.process_time() - self.began


class Dice(nn.Module):
    """Equation 5 of DIN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x))
        return p * x + self.alpha * (1 - p) * x


def perceptron(width: int, widths: list[int], outputs: int, *, dice: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in widths:
        layers += [nn.Linear(width, hidden), Dice(hidden) if dice else nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Plain(nn.Module):
    """The published formulas, with an nn.Embedding for each table; row 0 is of ids that training lacks.

    `forward` takes the singles [B, S], and histories as values [N] and lengths [B].
    """

    def __init__(self, model: str, vocabularies: dict[str, Array]) -> None:
        super().__init__()
        self.model, self.shares = model, torch.empty(0)  # each movie's share in training
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(len(v) + 1, DIM, sparse=True) for name, v in vocabularies.items()}
        )
        # In the order in which ours has them: `begin_alike` copies parameter by parameter.
        if model == "din":
            self.unit = perceptron(4 * DIM, ATTENTION, 1, dice=True)
            self.deep = perceptron(3 * DIM, HIDDEN, 1, dice=True)
        elif model == "esmm":
            self.click, self.conversion = (perceptron(DIM * len(SINGLE), HIDDEN, 1) for _ in range(2))
        else:
            self.query = perceptron(2 * DIM, HIDDEN[:1], WIDTH)
            self.item = perceptron(DIM, HIDDEN[:1], WIDTH)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        made: Tensor = self.tables[name](ids)
        return made

    def din(self, single: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B]."""
        target = self.rows("movie", single[:, 1])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        events = target.new_zeros(*mask.shape, DIM).masked_scatter(
            mask[:, :, None], self.rows("movie", values)
        )
        targets = target[:, None].expand_as(events)
        seen = torch.cat([targets, events, targets - events, targets * events], dim=2)
        weights = target.new_zeros(mask.shape).masked_scatter(mask, self.unit(seen[mask]))
        interest = (weights[:, :, None] * events).sum(dim=1)
        made: Tensor = self.deep(torch.cat([self.rows("user", single[:, 0]), target, interest], dim=1))
        return made[:, 0]

    def esmm(self, single: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of a click, and of a click and a conversion, [B] each."""
        x = torch.cat([self.rows(name, single[:, i]) for i, name in enumerate(SINGLE)], dim=1)
        click = torch.sigmoid(self.click(x)[:, 0])
        return click, click * torch.sigmoid(self.conversion(x)[:, 0])

    def queries(self, single: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        table, begins = self.tables["movie"].weight, lengths.cumsum(0) - lengths
        assert isinstance(table, Tensor)
        history = functional.embedding_bag(values, table, begins, mode="mean", sparse=True)
        query = self.query(torch.cat([self.rows("user", single[:, 0]), history], dim=1))
        return functional.normalize(query, dim=1)

    def items(self, ids: Tensor) -> Tensor:
        return functional.normalize(self.item(self.rows("movie", ids)), dim=1)

    def loss(self, single: Tensor, values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        if self.model == "din":
            logits = self.din(single, values, lengths)
            return functional.binary_cross_entropy_with_logits(logits, labels[:, 0])
        if self.model == "esmm":
            made = self.esmm(single)
            each = [functional.binary_cross_entropy(p, labels[:, i]) for i, p in enumerate(made)]
            return each[0] + each[1]
        movies, places = single[:, 1], torch.arange(len(single))
        scores = self.queries(single, values, lengths) @ self.items(movies).T / TEMPERATURE
        scores -= torch.log(-torch.expm1((len(single) - 1) * torch.log1p(-self.shares[movies])))
        same = movies[:, None] == movies
        out = (same | same.tril(-1).any(dim=1)) & (places[:, None] != places)  # once more, or seen before
        return functional.cross_entropy(scores.masked_fill(out, -torch.inf), places)


class Encoded:
    """Samples as the loop takes them: numbers of rows instead of ids."""

    def __init__(self, samples: SampleBatch, names: list[str], vocabularies: dict[str, Array]) -> None:
        def numbers(name: str, table: str) -> Tensor:
            ids, vocabulary = samples.ids[name].values, vocabularies[table]
            places = np.searchsorted(vocabulary, ids).clip(max=len(vocabulary) - 1)
            return torch.from_numpy(np.where(vocabulary[places] == ids, places + 1, 0))

        self.single = torch.stack([numbers(n, n) for n in names if n != "history"], dim=1)
        self.starts = torch.from_numpy(samples.ids["history"].starts.astype(np.int64))
        self.values = numbers("history", "movie") if "history" in names else torch.empty(0, dtype=torch.int64)
        self.labels = torch.from_numpy(samples.labels)

    def batch(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        starts = self.starts[begin : end + 1]
        values = self.values[int(starts[0]) : int(starts[-1])]
        return self.single[begin:end], values, starts.diff(), self.labels[begin:end]


def plain_pytorch(
    model: str, seed: int, folder: Path, train: SampleBatch, test: SampleBatch
) -> dict[str, float]:
    torch.manual_seed(seed)
    names, movies = USED[model], train.ids["movie"].values
    vocabularies = {n: np.unique(train.ids[n].values) for n in names if n != "history"}
    if "history" in names:
        vocabularies["movie"] = np.unique(np.concatenate([movies, train.ids["history"].values]))
    plain = Plain(model, vocabularies)
    plain.shares = torch.from_numpy(
        np.bincount(np.searchsorted(vocabularies["movie"], movies) + 1) / len(movies)
    ).float()
    begin_alike(plain, vocabularies, model, seed, folder)
    others = [p for key, p in plain.named_parameters() if not key.startswith("tables.")]
    optimizers = [
        torch.optim.Adagrad(plain.tables.parameters(), **ROWS),
        torch.optim.Adam(others, lr=1e-3),
    ]
    data, tested = Encoded(train, names, vocabularies), Encoded(test, names, vocabularies)
    begin, processor = time.perf_counter(), time.process_time()
    for place in list(range(0, train.num_samples, BATCH)) * EPOCHS[model]:
        loss = plain.loss(*data.batch(place, min(place + BATCH, train.num_samples)))
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
    count = EPOCHS[model] * train.num_samples
    speed, busy = count / (time.perf_counter() - begin), count / (time.process_time() - processor)
    plain.eval()
    with torch.no_grad():
        found = measured(plain, tested, np.searchsorted(vocabularies["movie"], np.unique(movies)) + 1)
    return found | {SPEEDS[0]: speed, SPEEDS[1]: busy}


def measured(plain: Plain, tested: Encoded, items: Array) -> dict[str, float]:
    """Returns the metrics: AUC of each label, or those of ranking `items` by their numbers."""
    single, values, lengths, labels = tested.batch(0, len(tested.labels))
    if plain.model == "din":
        return {"auc": auc(plain.din(single, values, lengths).numpy(), labels[:, 0].numpy())}
    if plain.model == "esmm":
        each = [auc(p.numpy(), labels[:, i].numpy()) for i, p in enumerate(plain.esmm(single))]
        return dict(zip(("auc of clicks", "auc of both"), each, strict=True))
    scores = plain.queries(single, values, lengths) @ plain.items(torch.from_numpy(items)).T
    right = (plain.queries(single, values, lengths) * plain.items(single[:, 1])).sum(dim=1, keepdim=True)
    other = torch.from_numpy(items) != single[:, 1:2]
    ranks = 1 + ((scores > right) & other).sum(dim=1)
    asked = torch.isin(single[:, 1], torch.from_numpy(items))  # others aren't in the catalogue
    hits = [int(rank) for rank, ok in zip(ranks, asked, strict=True) if ok and rank <= 10]
    gain = sum(1 / math.log2(rank + 1) for rank in hits)
    return {"recall@10": len(hits) / len(ranks), "ndcg@10": gain / len(ranks)}


def begin_alike(plain: Plain, vocabularies: dict[str, Array], model: str, seed: int, folder: Path) -> None:
    """Gives the loop the rows and weights that ours begins with, from a run that learns nothing."""
    still = settings(model, seed, folder)
    still["run_dir"] = str(folder / "begin")
    still["data"].pop("test")
    still["tables"]["default"]["optimizer"] = {"name": "sgd", "lr": 0.0}
    still["train"] |= {"epochs": 1, "optimizer": {"name": "SGD", "lr": 0.0}, "save": True}
    ph.train(still, quiet=True)
    loaded = ph.load(folder / "begin")
    dense = [p for key, p in plain.named_parameters() if not key.startswith("tables.")]
    with torch.no_grad():
        for name, vocabulary in vocabularies.items():
            table = plain.tables[name].weight
            assert isinstance(table, Tensor)
            table[0] = 0.0
            table[1:] = torch.from_numpy(loaded.rows(name, vocabulary))
        for mine, theirs in zip(dense, loaded.model().parameters(), strict=True):
            mine.copy_(theirs)


def ours(model: str, seed: int, folder: Path) -> dict[str, float]:
    watch = Processor()
    summary = ph.train(settings(model, seed, folder), callbacks=[watch], quiet=True)
    test: dict[str, Any] = summary["test"]
    if model == "esmm":
        names = {"auc of clicks": "auc_liked", "auc of both": "auc_loved"}
    else:
        names = {name: name for name in (["auc"] if model == "din" else ["recall@10", "ndcg@10"])}
    found = {name: float(test[key]) for name, key in names.items()}
    return found | {SPEEDS[0]: summary["samples_per_second"], SPEEDS[1]: summary["samples"] / watch.seconds}


def show(model: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    rates = ""
    for speed in SPEEDS:
        here, loop = (statistics.median(pair[k][speed] for pair in pairs) for k in (0, 1))
        rates += f" | {here:,.0f} | {loop:,.0f} | {here / loop:.2f}"
    for metric in (name for name in pairs[0][0] if name not in SPEEDS):
        found = [[pair[k][metric] for pair in pairs] for k in (0, 1)]
        each = max(abs(a - b) for a, b in zip(*found, strict=True))
        means = [statistics.mean(some) for some in found]
        spreads = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in found]
        cells = [f"{mean:.4f} ± {s:.4f}" for mean, s in zip(means, spreads, strict=True)]
        row = f"{cells[0]} | {cells[1]} | {means[0] - means[1]:+.5f} | {each:.5f}{rates}"
        print(f"| {model}, {metric} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--users", type=int, default=1500, help="only the first ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = read(options.data / "movielens_1m", options.users)
    speeds = "".join(f" {kind} here | of the loop | ratio |" for kind in ("samples/s", "of processors"))
    print(
        f"| model, metric | here | of the loop | difference | largest |{speeds}\n{'|---' * 11}|", flush=True
    )
    for model in options.models:
        pairs = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as name:
                train, test = divided(samples, model, seed, Path(name))
                here = ours(model, seed, Path(name))
                pairs.append((here, plain_pytorch(model, seed, Path(name), train, test)))
        show(model, pairs)


if __name__ == "__main__":
    main()
