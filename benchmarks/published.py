"""Configurations of published models on real data beside a plain PyTorch loop with the same settings.

    python benchmarks/published.py --data DIR [--sets adult movielens criteo] [--models dnn dlrm deepfm ...]
                                   [--optimizer adagrad] [--l2 0] [--seeds 1 2 3] [--paired]

DIR holds criteo_137k and movielens_1m, as in the tests' PERSIA_HPC_DATA; adult is in the repository. The
settings are like those of datasets/bars (rows of 10, normal with 1e-4, batch normalisation), with narrower
layers and smaller batches, so that CPUs do it within minutes; the learning rates are constant.
With `--optimizer adam` the loop too has Adam of each row in the steps that use it, and `--l2` of these rows;
with `adam_tables` it has torch.optim.Adam on whole tables in every step, as FuxiCTR has. With `--paired` the
loop begins with our rows and weights, and both take the samples in one order, drawn by the seed: but with
`adam_tables` only rounding differs. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import persia_hpc as ph
from persia_hpc.arrays import Array
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.trainer.label_metrics import auc

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-c", "import sys; from persia_hpc.cli import main; sys.exit(main())"]
DIM, HIDDEN = 10, [64, 64]
OPTIMIZERS = {
    "adagrad": {"lr": 0.02, "initial_accumulator_value": 0.01},  # from 0 the first steps are all sign
    "adam": {"lr": 1e-3},
    "adam_tables": {"lr": 1e-3},
}
BATCH = {"adult": 256, "criteo": 512, "movielens": 4096}
EPOCHS = {"adult": 3, "criteo": 2, "movielens": 1}
NORMALISED = ("adult", "movielens")  # by batches; BARS does not with Criteo_x1
# Those with a single id in each sample: so a plain table does for the loop.
FEATURES = {"movielens": ["user", "movie", "gender", "age", "occupation", "zip", "year"]}
MODELS: dict[str, dict[str, Any]] = {
    "dnn": {"class": "tower", "hidden": HIDDEN},
    "deepfm": {"class": "deepfm", "hidden": HIDDEN, "id_weights": True},
    "fm": {"class": "deepfm", "hidden": [], "id_weights": True},
    "dcn_v2": {"class": "dcn_v2", "hidden": HIDDEN, "cross_layers": 3},
    "dlrm": {"class": "dlrm", "hidden": HIDDEN, "bottom": HIDDEN[:1]},
    "mmoe": {"class": "mmoe", "experts": 4, "expert": HIDDEN, "tower": HIDDEN[:1]},
    "ple": {"class": "ple", "experts": [[n] for n in HIDDEN], "own": 2, "shared": 1, "tower": HIDDEN[:1]},
}


class RowAdam(torch.optim.Optimizer):
    """Is torch.optim.Adam on each row of sparse gradients, with a step count of its own."""

    def __init__(self, tables: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(tables, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                state, gradient = self.state[table], table.grad.coalesce()
                if not state:
                    state |= {"m": torch.zeros_like(table), "v": torch.zeros_like(table)}
                    state["steps"] = torch.zeros(len(table), 1)
                rows, g = gradient.indices()[0], gradient.values()
                g = g + group["weight_decay"] * table[rows]
                state["steps"][rows] += 1
                state["m"][rows] = m = 0.9 * state["m"][rows] + 0.1 * g
                state["v"][rows] = v = 0.999 * state["v"][rows] + 0.001 * g * g
                steps = state["steps"][rows]
                root = (v / (1 - 0.999**steps)).sqrt() + 1e-8
                table[rows] -= group["lr"] / (1 - 0.9**steps) * m / root


@dataclass(frozen=True)
class Case:
    """Says what is trained; paired: `train` is a file in which the samples are in their order."""

    folder: Path
    name: str
    model: str
    optimizer: str
    seed: int
    train: str
    paired: bool
    l2: float = 0.0

    @property
    def rows(self) -> dict[str, float]:
        """Returns the arguments of the optimizer of embeddings."""
        return OPTIMIZERS[self.optimizer] | ({"weight_decay": self.l2} if self.l2 else {})


def perceptron(width: int, widths: list[int] = HIDDEN, *, normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in widths:
        norm = [nn.BatchNorm1d(hidden)] if normalised else []
        layers += [nn.Linear(width, hidden), *norm, nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers)


class Level(nn.Module):
    """A level of PLE for one task: two experts of its own and a shared one."""

    def __init__(self, width: int, made: int, *, last: bool, normalised: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(perceptron(width, [made], normalised=normalised) for _ in range(2))
        self.shared = perceptron(width, [made], normalised=normalised)
        self.gate = nn.Linear(width, 3)
        self.shared_gate = None if last else nn.Linear(width, 3)

    def forward(self, of_task: Tensor, of_all: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.stack([*(expert(of_task) for expert in self.own), self.shared(of_all)], dim=1)
        mixed = (torch.softmax(self.gate(of_task), dim=1).unsqueeze(1) @ made).squeeze(1)
        if self.shared_gate is None:
            return mixed, of_all
        return mixed, (torch.softmax(self.shared_gate(of_all), dim=1).unsqueeze(1) @ made).squeeze(1)


class Plain(nn.Module):
    """The published formulas, with an nn.Embedding for each feature."""

    def __init__(
        self, model: str, vocabularies: list[int], num_dense: int, *, sparse: bool, normalised: bool
    ) -> None:
        super().__init__()
        self.model = model
        weighted = model in ("deepfm", "fm")
        self.tables = nn.ModuleList(
            nn.Embedding(size + 1, DIM + weighted, sparse=sparse, padding_idx=0) for size in vocabularies
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=1e-4)
            with torch.no_grad():
                table.weight[0].zero_()
        width = DIM * len(vocabularies) + num_dense
        # In the order in which ours has them: `begin_alike` copies parameter by parameter.
        self.linear = nn.Linear(num_dense, 1) if weighted else None
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(3 if model == "dcn_v2" else 0))
        self.bottom: nn.Sequential | None = None
        if model == "dlrm":
            count = len(vocabularies)
            if num_dense:
                self.bottom = perceptron(num_dense, HIDDEN[:1], normalised=normalised)
                self.bottom.extend([nn.Linear(HIDDEN[0], DIM), nn.ReLU()])
                count += 1
            self.pairs = torch.tril_indices(count, count, offset=-1)
            width = DIM * (1 if num_dense else count) + self.pairs.shape[1]
        experts = 4 if model == "mmoe" else 0
        self.experts = nn.ModuleList(perceptron(width, normalised=normalised) for _ in range(experts))
        self.gate = nn.Linear(width, experts) if experts else None
        self.levels = nn.ModuleList()
        for made in HIDDEN if model == "ple" else []:
            last = len(self.levels) == len(HIDDEN) - 1
            self.levels.append(Level(width, made, last=last, normalised=normalised))
            width = made
        if experts:
            width = HIDDEN[-1]
        widths = HIDDEN[:1] if experts or self.levels else HIDDEN
        self.deep = perceptron(width, widths, normalised=normalised) if model != "fm" else None
        ends = widths[-1] + (width if model == "dcn_v2" else 0)
        self.last = nn.Linear(ends, 1) if model != "fm" else None

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        vectors = rows[:, :, :DIM]
        total = vectors.new_zeros(len(ids), 1)
        if self.linear is not None:
            pairs = (vectors.sum(dim=1) ** 2 - (vectors**2).sum(dim=1)).sum(dim=1, keepdim=True) / 2
            total = self.linear(dense) + rows[:, :, DIM].sum(dim=1, keepdim=True) + pairs
        if self.deep is None or self.last is None:
            return total
        x = self._multiplied(dense, vectors) if self.model == "dlrm" else None
        if x is None:
            x = torch.cat([dense, vectors.flatten(1)], dim=1)
        if self.gate is not None:
            made = torch.stack([expert(x) for expert in self.experts], dim=1)
            x = (torch.softmax(self.gate(x), dim=1).unsqueeze(1) @ made).squeeze(1)
        of_all = x
        for level in self.levels:
            x, of_all = level(x, of_all)
        made = self.deep(x)
        if self.crosses:
            crossed = x
            for cross in self.crosses:
                crossed = x * cross(crossed) + crossed
            made = torch.cat([crossed, made], dim=1)
        return total + self.last(made)

    def _multiplied(self, dense: Tensor, vectors: Tensor) -> Tensor:
        if self.bottom is not None:
            vectors = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        copied = vectors[:, 0] if self.bottom is not None else vectors.flatten(1)
        return torch.cat([copied, products], dim=1)


def load(folder: Path, split: str) -> SampleBatch:
    source = open_source(sorted(str(path) for path in folder.glob(f"{split}*.h5")))
    return source.read(0, source.num_samples)


def plain_pytorch(case: Case, data: SampleBatch, run: Path) -> dict[str, float]:
    torch.manual_seed(case.seed)
    name, test = case.name, load(case.folder, "test")
    names = FEATURES.get(name, list(data.ids))
    vocabularies = [np.unique(data.ids[n].values) for n in names]

    def encode(batch: SampleBatch) -> Tensor:
        columns = []
        for vocabulary, n in zip(vocabularies, names, strict=True):
            values = batch.ids[n].values
            places = np.searchsorted(vocabulary, values).clip(max=len(vocabulary) - 1)
            columns.append(np.where(vocabulary[places] == values, places + 1, 0))  # 0: never seen in training
        return torch.tensor(np.stack(columns, axis=1))

    sparse = case.optimizer != "adam_tables"
    sizes, num_dense = [len(v) for v in vocabularies], data.dense.shape[1]
    plain = Plain(case.model, sizes, num_dense, sparse=sparse, normalised=name in NORMALISED)
    if case.paired:
        begin_alike(plain, dict(zip(names, vocabularies, strict=True)), case, run)
    kinds = {"adagrad": torch.optim.Adagrad, "adam": RowAdam, "adam_tables": torch.optim.Adam}
    of_rows = kinds[case.optimizer](plain.tables.parameters(), **case.rows)
    others = [p for key, p in plain.named_parameters() if not key.startswith("tables.") and p.numel()]
    optimizers: list[torch.optim.Optimizer] = [of_rows]
    if others:
        optimizers.append(torch.optim.Adam(others, lr=1e-3))
    ids, dense, labels = encode(data), torch.tensor(data.dense), torch.tensor(data.labels[:, :1])
    begin = time.perf_counter()
    for _ in range(EPOCHS[name]):
        order = torch.arange(len(labels)) if case.paired else torch.randperm(len(labels))
        for part in order.split(BATCH[name]):
            loss = nn.functional.binary_cross_entropy_with_logits(plain(ids[part], dense[part]), labels[part])
            for each in optimizers:
                each.zero_grad()
            loss.backward()
            for each in optimizers:
                each.step()
    seconds = time.perf_counter() - begin
    plain.eval()
    with torch.no_grad():
        parts = zip(encode(test).split(65_536), torch.tensor(test.dense).split(65_536), strict=True)
        logits = torch.cat([plain(*part) for part in parts]).numpy()[:, 0]
    return {
        "auc": auc(logits, test.labels[:, 0]),
        "samples_per_second": EPOCHS[name] * len(labels) / seconds,
    }


def settings(case: Case) -> dict[str, Any]:
    options = {"name": case.optimizer.removesuffix("_tables"), **case.rows}
    found: dict[str, Any] = {
        "mode": "sync",
        "seed": case.seed,
        "data.shuffle": not case.paired,
        "data.test": str(case.folder / "test.h5"),
        "data.batch_size": BATCH[case.name],
        "tables.default.dim": DIM + MODELS[case.model].get("id_weights", False),
        **{f"tables.default.optimizer.{key}": value for key, value in options.items()},
        "tables.default.init": '{ name = "normal", std = 1e-4 }',
        "tables.default.capacity": "256 MiB",
        "model.batch_norm": case.name in NORMALISED,
        "train.epochs": EPOCHS[case.name],
        "train.optimizer": '{ name = "Adam", lr = 1e-3 }',
        "train.save": False,
        **{f"model.{key}": value for key, value in MODELS[case.model].items()},
    }
    if case.name in FEATURES:
        found["data.features"] = FEATURES[case.name]
    return found


def train(case: Case, settings: dict[str, Any], run: Path) -> dict[str, Any]:
    config = run.with_suffix(".toml")
    config.write_text(f'data.train = "{case.train}"\n')
    command = [*CLI, "train", str(config), "--one-process", "--quiet", "--run-dir", str(run)]
    for key, value in settings.items():
        text = value if isinstance(value, str) and value.startswith("{") else json.dumps(value)
        command += ["--set", f"{key}={text}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def ours(case: Case, run: Path) -> dict[str, float]:
    summary = train(case, settings(case), run)
    return {"auc": summary["test"]["auc"], "samples_per_second": summary["samples_per_second"]}


def begin_alike(plain: Plain, vocabularies: dict[str, Array], case: Case, run: Path) -> None:
    """Gives the loop the rows and weights that ours begins with, from a run that learns nothing."""
    still = {k: v for k, v in settings(case).items() if not k.startswith("tables.default.optimizer")}
    still |= {"tables.default.optimizer": '{ name = "sgd", lr = 0.0 }', "train.epochs": 1, "train.save": True}
    still |= {"train.optimizer": '{ name = "SGD", lr = 0.0 }'}
    begin = run.with_name(f"{run.name}-begin")
    train(case, still, begin)
    loaded = ph.load(begin)
    dense = [p for key, p in plain.named_parameters() if not key.startswith("tables.")]
    with torch.no_grad():
        for table, (name, vocabulary) in zip(plain.tables, vocabularies.items(), strict=True):
            assert isinstance(table, nn.Embedding)
            table.weight[1:] = torch.from_numpy(loaded.rows(name, vocabulary))
        for mine, theirs in zip(dense, loaded.model().parameters(), strict=True):
            mine.copy_(theirs)


def mixed(case: Case) -> SampleBatch:
    """Writes the training samples in an order that the seed says; returns them."""
    data = load(case.folder, "train")
    data = data.take(np.random.default_rng(case.seed).permutation(data.num_samples))
    schema = open_source(sorted(str(path) for path in case.folder.glob("train*.h5"))).schema
    with DatasetWriter(case.train, schema) as writer:
        writer.write(data)
    return data


def prepare(name: str, data: Path, out: Path) -> None:
    inputs = {
        "adult": ["adult", "--input", str(ROOT / "datasets" / "adult")],
        "criteo": ["criteo", "--input", str(data / "criteo_137k" / "criteo_137k.tsv.xz")],
        "movielens": ["movielens", "--input", str(data / "movielens_1m"), "--fractions", "0.9", "0", "0.1"],
    }
    command = [*CLI, "preprocess", *inputs[name], "--out", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=tuple(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="adagrad")
    parser.add_argument("--l2", type=float, default=0.0, help="of embeddings, with Adam")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--paired", action="store_true", help="same weights, rows and order at the start")
    options = parser.parse_args()
    if options.l2 and options.optimizer == "adagrad":
        parser.error("--l2 needs Adam: torch's Adagrad has none for sparse gradients")
    torch.set_num_threads(1)
    columns = ("data", "model", "AUC here", "AUC of the loop", "difference", "largest", "samples/s here")
    print(f"| {' | '.join([*columns, 'of the loop', 'ratio'])} |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sets:
            folder = Path(scratch, name)
            prepare(name, options.data, folder)
            for model in options.models:
                if model == "fm" and name not in FEATURES and not options.paired:
                    continue  # with numbers, whose weights take longer to learn: 0.01 from seed to seed
                pairs = []
                for seed in options.seeds:
                    run = Path(scratch, f"{name}-{model}-{seed}")
                    files = str(Path(scratch, "mixed.h5") if options.paired else folder / "train*.h5")
                    paired = options.paired
                    case = Case(folder, name, model, options.optimizer, seed, files, paired, options.l2)
                    data = mixed(case) if options.paired else load(folder, "train")
                    pairs.append((ours(case, run), plain_pytorch(case, data, run)))
                show(name, model, pairs)


def show(name: str, model: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    here, loop = ([pair[k]["auc"] for pair in pairs] for k in (0, 1))
    speeds = [statistics.median(pair[k]["samples_per_second"] for pair in pairs) for k in (0, 1)]
    difference = statistics.mean(here) - statistics.mean(loop)
    spreads = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in (here, loop)]
    cells = [f"{statistics.mean(some):.4f} ± {s:.4f}" for some, s in zip((here, loop), spreads, strict=True)]
    rates = f"{speeds[0]:,.0f} | {speeds[1]:,.0f} | {speeds[0] / speeds[1]:.2f}"
    each = max(abs(a - b) for a, b in zip(here, loop, strict=True))
    differences = f"{difference:+.5f} | {each:.5f}"
    print(f"| {name} | {model} | {cells[0]} | {cells[1]} | {differences} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
