"""Configurations of published models on real data beside a plain PyTorch loop with the same settings.

    python benchmarks/published.py --data DIR [--sets adult movielens criteo] [--models dnn dlrm deepfm ...]
                                   [--optimizer adagrad] [--l2 0] [--seeds 1 2 3] [--paired [--plateau]]

DIR holds criteo_137k and movielens_1m, as in the tests' PERSIA_HPC_DATA; adult is in the repository. The
settings are like those of datasets/bars (rows of 10, normal with 1e-4, batch normalisation), with narrower
layers and smaller batches, so that CPUs do it within minutes; the learning rates are constant but for
`--plateau`: a tenth of the training samples is for validation, and all rates, of rows and weights, are a
tenth of what they were after a pass that didn't improve its AUC, in the loop by ReduceLROnPlateau.
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
from torch.optim.lr_scheduler import ReduceLROnPlateau

import persia_hpc as ph
from persia_hpc.arrays import Array
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.trainer.label_metrics import auc

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.published_models import DIM, HIDDEN, Plain, RowAdam

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-c", "import sys; from persia_hpc.cli import main; sys.exit(main())"]
OPTIMIZERS = {
    "adagrad": {"lr": 0.02, "initial_accumulator_value": 0.01},  # from 0 the first steps are all sign
    "adam": {"lr": 1e-3},
    "adam_tables": {"lr": 1e-3},
}
PLATEAU: dict[str, Any] = {"metric": "auc", "patience": 1, "min_delta": 1e-6, "factor": 0.1}  # BARS'
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
    epochs: int = 1
    valid: str | None = None  # the file by whose AUC rates are lowered

    @property
    def rows(self) -> dict[str, float]:
        """Returns the arguments of the optimizer of embeddings."""
        return OPTIMIZERS[self.optimizer] | ({"weight_decay": self.l2} if self.l2 else {})


def load(*paths: Path) -> SampleBatch:
    source = open_source(sorted(map(str, paths)))
    return source.read(0, source.num_samples)


def plain_pytorch(case: Case, data: SampleBatch, run: Path) -> dict[str, float]:
    torch.manual_seed(case.seed)
    name, test = case.name, load(case.folder / "test.h5")
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

    def tested(batch: SampleBatch) -> float:
        plain.eval()
        with torch.no_grad():
            parts = zip(encode(batch).split(65_536), torch.tensor(batch.dense).split(65_536), strict=True)
            logits = torch.cat([plain(*part) for part in parts]).numpy()[:, 0]
        plain.train()
        return float(auc(logits, batch.labels[:, 0]))

    valid = None if case.valid is None else load(Path(case.valid))
    lowered = [
        ReduceLROnPlateau(
            each,
            mode="max",
            factor=PLATEAU["factor"],
            patience=PLATEAU["patience"] - 1,  # bad evaluations before the one that lowers rates
            threshold=PLATEAU["min_delta"],
            threshold_mode="abs",
            eps=0.0,
        )
        for each in optimizers
    ]
    begin = time.perf_counter()
    for _ in range(case.epochs):
        order = torch.arange(len(labels)) if case.paired else torch.randperm(len(labels))
        for part in order.split(BATCH[name]):
            loss = nn.functional.binary_cross_entropy_with_logits(plain(ids[part], dense[part]), labels[part])
            for each in optimizers:
                each.zero_grad()
            loss.backward()
            for each in optimizers:
                each.step()
        if valid is not None:
            found = tested(valid)
            for schedule in lowered:
                schedule.step(found)
    seconds = time.perf_counter() - begin
    return {
        "auc": tested(test),
        "samples_per_second": case.epochs * len(labels) / seconds,
        "factor": of_rows.param_groups[0]["lr"] / case.rows["lr"],
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
        "train.epochs": case.epochs,
        "train.optimizer": '{ name = "Adam", lr = 1e-3 }',
        "train.save": False,
        **{f"model.{key}": value for key, value in MODELS[case.model].items()},
    }
    if case.name in FEATURES:
        found["data.features"] = FEATURES[case.name]
    if case.valid is not None:
        options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in PLATEAU.items())
        found |= {"data.valid": case.valid, "train.plateau": f"{{ {options} }}"}
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
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    factors = [event["rate_factor"] for event in events if "rate_factor" in event]
    return {
        "auc": summary["test"]["auc"],
        "samples_per_second": summary["samples_per_second"],
        "factor": factors[-1] if factors else 1.0,
    }


def begin_alike(plain: Plain, vocabularies: dict[str, Array], case: Case, run: Path) -> None:
    """Gives the loop the rows and weights that ours begins with, from a run that learns nothing."""
    still = {k: v for k, v in settings(case).items() if not k.startswith("tables.default.optimizer")}
    still |= {"tables.default.optimizer": '{ name = "sgd", lr = 0.0 }', "train.epochs": 1, "train.save": True}
    still |= {"train.optimizer": '{ name = "SGD", lr = 0.0 }'}
    for key in ("data.valid", "train.plateau"):
        still.pop(key, None)
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
    """Writes the training samples in an order that the seed says; returns them, but for the validation's."""
    paths = sorted(case.folder.glob("train*.h5"))
    data, schema = load(*paths), open_source(list(map(str, paths))).schema
    data = data.take(np.random.default_rng(case.seed).permutation(data.num_samples))
    count = data.num_samples * 9 // 10 if case.valid is not None else data.num_samples
    parts = {case.train: data.slice(0, count)}
    if case.valid is not None:
        parts[case.valid] = data.slice(count, data.num_samples)
    for path, part in parts.items():
        with DatasetWriter(path, schema) as writer:
            writer.write(part)
    return parts[case.train]


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
    parser.add_argument("--plateau", action="store_true", help="rates that fall when the AUC does not rise")
    parser.add_argument("--epochs", type=int, help="passes over the training samples")
    options = parser.parse_args()
    if options.plateau and not options.paired:
        parser.error("--plateau needs --paired")
    if options.l2 and options.optimizer == "adagrad":
        parser.error("--l2 needs Adam: torch's Adagrad has none for sparse gradients")
    torch.set_num_threads(1)
    columns = ("data", "model", "AUC here", "AUC of the loop", "difference", "largest", "samples/s here")
    factors = ["rates at the end, here / loop"] if options.plateau else []
    print(f"| {' | '.join([*columns, 'of the loop', 'ratio', *factors])} |")
    print("|---" * (9 + len(factors)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sets:
            folder = Path(scratch, name)
            prepare(name, options.data, folder)
            for model in options.models:
                if model == "fm" and name not in FEATURES and not options.paired:
                    continue  # with numbers, whose weights take longer to learn: 0.01 from seed to seed
                pairs = []
                for seed in options.seeds:
                    run, paired = Path(scratch, f"{name}-{model}-{seed}"), options.paired
                    case = Case(
                        folder,
                        name,
                        model,
                        options.optimizer,
                        seed,
                        str(Path(scratch, "mixed.h5") if paired else folder / "train*.h5"),
                        paired,
                        options.l2,
                        options.epochs or EPOCHS[name],
                        str(Path(scratch, "valid.h5")) if options.plateau else None,
                    )
                    data = mixed(case) if paired else load(*folder.glob("train*.h5"))
                    pairs.append((ours(case, run), plain_pytorch(case, data, run)))
                show(name, model, pairs, with_factors=options.plateau)


def show(
    name: str, model: str, pairs: list[tuple[dict[str, float], dict[str, float]]], *, with_factors: bool
) -> None:
    here, loop = ([pair[k]["auc"] for pair in pairs] for k in (0, 1))
    speeds = [statistics.median(pair[k]["samples_per_second"] for pair in pairs) for k in (0, 1)]
    difference = statistics.mean(here) - statistics.mean(loop)
    spreads = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in (here, loop)]
    cells = [f"{statistics.mean(some):.4f} ± {s:.4f}" for some, s in zip((here, loop), spreads, strict=True)]
    rates = f"{speeds[0]:,.0f} | {speeds[1]:,.0f} | {speeds[0] / speeds[1]:.2f}"
    each = max(abs(a - b) for a, b in zip(here, loop, strict=True))
    differences = f"{difference:+.5f} | {each:.5f}"
    factors = ", ".join(f"{a['factor']:.0e} / {b['factor']:.0e}" for a, b in pairs)
    print(
        f"| {name} | {model} | {cells[0]} | {cells[1]} | {differences} | {rates} |"
        + (f" {factors} |" if with_factors else ""),
        flush=True,
    )


if __name__ == "__main__":
    main()
