"""The one-process session equals plain PyTorch: embeddings, pooling and optimizers, row by row, after 50
steps.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

import persia_hpc as ph
from persia_hpc._native import mix
from persia_hpc.cli import main
from persia_hpc.job.sources import open_sources
from persia_hpc.models import build_model
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.reader import BatchReader
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.schedule import make_schedules
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs
from tests.support.models import Small
from tests.support.schedules import torch_rates
from tests.support.tiny import (
    SCHEMA,
    SEQUENCES,
    VOCABULARY,
    tiny_batch,
    tiny_config,
    trained_rows,
    write_sequences,
    write_tiny,
)

STEPS = 50
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.5},
    "adagrad": {"name": "adagrad", "lr": 0.1, "initial_accumulator_value": 0.1},
    "rowwise_adagrad": {"name": "rowwise_adagrad", "lr": 0.1},
    "adam": {"name": "adam", "lr": 0.02},
}
SCHEDULES = {
    "tables.default.schedule": {"name": "cosine", "warmup_steps": 10, "warmup_start": 0.2, "final": 0.1},
    "tables.item.schedule": {"name": "step", "every": 15, "gamma": 0.5},
    "train.schedule": "cosine",
}


class RowwiseAdagrad(torch.optim.Optimizer):
    """FBGEMM's exact row-wise Adagrad on one row: the state is the sum of mean squares."""

    def __init__(self, params, lr, eps=1e-8):
        super().__init__(params, {"lr": lr, "eps": eps})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(p, {"sum": torch.zeros(())})
                state["sum"] += (p.grad**2).mean()
                p.data -= group["lr"] * p.grad / (state["sum"].sqrt() + group["eps"])


def row_optimizer(settings, row):
    arguments = {k: v for k, v in settings.items() if k != "name"}
    made = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rowwise_adagrad": RowwiseAdagrad,
        "adam": torch.optim.Adam,
    }[settings["name"]]
    return made([row], **arguments)


class ReferenceTable:
    """One nn.Parameter and one optimizer a row, stepped only when the row is used.

    `rates`: of each step, if not constant.
    """

    def __init__(self, initial, settings, rates=None):
        self.rates = rates
        self.rows = [nn.Parameter(torch.tensor(r)) for r in initial]
        self.optimizers = [row_optimizer(settings, r) for r in self.rows]

    def step(self, used, number):
        for i in used:
            if self.rates is not None:
                self.optimizers[i].param_groups[0]["lr"] = self.rates[number - 1]
            self.optimizers[i].step()
            self.optimizers[i].zero_grad()


def pooled(table, ids, pooling, weights=None):
    if not ids:
        return torch.zeros_like(table.rows[0])
    weights = [1.0] * len(ids) if weights is None else weights
    total = torch.stack([table.rows[i] * w for i, w in zip(ids, weights, strict=True)]).sum(dim=0)
    return total / {"sum": 1, "mean": sum(weights), "sqrtn": len(ids) ** 0.5}[pooling]


class View:
    """What the model sees, made by hand from ids."""

    def __init__(self, sample, tables, layout):
        self.dense = torch.tensor(sample.dense)
        self.labels = torch.tensor(sample.labels)
        self.pooled, self.sequence, self.jagged = {}, {}, {}
        self.used = {}
        for feature in layout.features:
            name = layout.tables[feature.table].name
            column = sample.ids[feature.name]
            offsets = column.offsets if column.offsets is not None else np.arange(len(column.values) + 1)
            ends = list(zip(offsets[:-1].astype(int), offsets[1:].astype(int), strict=True))
            last = slice(-(feature.max_length or 10**9), None)
            bags = [column.values[a:b][last].astype(int).tolist() for a, b in ends]
            weights = [None] * len(bags)
            if column.weights is not None:
                weights = [column.weights[a:b][last].tolist() for a, b in ends]
            self.used.setdefault(name, set()).update(i for bag in bags for i in bag)
            table = tables[name]
            if feature.pooling == "sequence":
                length = max(map(len, bags))
                zero = torch.zeros_like(table.rows[0])
                values = [
                    torch.stack([*(table.rows[i] for i in bag), *[zero] * (length - len(bag))])
                    for bag in bags
                ]
                mask = [[k < len(bag) for k in range(length)] for bag in bags]
                self.sequence[feature.name] = (torch.stack(values), torch.tensor(mask))
            elif feature.pooling == "jagged":
                self.jagged[feature.name] = ByHand(table, bags, weights)
            else:
                self.pooled[feature.name] = torch.stack(
                    [pooled(table, bag, feature.pooling, w) for bag, w in zip(bags, weights, strict=True)]
                )


class ByHand:
    """What a jagged feature has, for `Small`."""

    def __init__(self, table, bags, weights):
        self.sizes = [len(bag) for bag in bags]
        self.values = torch.stack([table.rows[i] for bag in bags for i in bag])
        self.weights = None if weights[0] is None else torch.tensor([w for bag in weights for w in bag])

    def with_values(self, values):
        other = copy.copy(self)
        other.values = values
        return other

    def mean(self):
        return torch.stack([v.sum(0) / max(1, len(v)) for v in self.values.split(self.sizes)])


def torch_schedules(lr):
    """Rates of the tables `item` and the others, as SCHEDULES says, by torch's schedulers."""
    return {
        "item": torch_rates(lambda o: StepLR(o, 15, 0.5), STEPS, lr=lr),
        "other": torch_rates(lambda o: CosineAnnealingLR(o, STEPS - 10, 0.1 * lr), STEPS, 10, 0.2, lr),
    }


@pytest.mark.parametrize(
    ("optimizer", "pooling", "schedules"),
    [
        ("sgd", "sum", False),
        ("adagrad", "mean", False),
        ("rowwise_adagrad", "sqrtn", False),
        ("adam", "mean", False),
        ("adam", "sqrtn", False),
        ("sgd", "sum", True),
        ("adam", "mean", True),
    ],
)
def test_session_equals_plain_pytorch(tmp_path, optimizer, pooling, schedules):
    compare(tmp_path, write_tiny(tmp_path / "train.h5", 160), optimizer, pooling, schedules)


def test_missing_labels_have_no_part_in_the_gradients(tmp_path):
    batch = tiny_batch(160)
    labels = np.random.default_rng(3).integers(0, 2, (160, 2)).astype(np.float32)
    labels[::3, 1] = np.nan
    labels[:5] = np.nan
    schema = dataclasses.replace(SCHEMA, label_names=("click", "buy"))
    with DatasetWriter(tmp_path / "train.h5", schema) as writer:
        writer.write(dataclasses.replace(batch, labels=labels))
    compare(tmp_path, str(tmp_path / "train.h5"), "sgd", "sum", False)


def bce_of_known_labels(logits, labels):
    """By hand: the sum over the known labels, divided by the number of all."""
    known = ~labels.isnan()
    x, y = logits[known], labels[known]
    return (nn.functional.softplus(x) - x * y).sum() / labels.numel()


@pytest.mark.parametrize(("optimizer", "pooling"), [("sgd", "sum"), ("adagrad", "mean")])
def test_sequences_and_weights_equal_plain_pytorch(tmp_path, optimizer, pooling):
    changes = copy.deepcopy(SEQUENCES)
    compare(tmp_path, write_sequences(tmp_path / "train.h5", 160), optimizer, pooling, False, **changes)


@pytest.mark.parametrize("hidden", [[], [8]])
def test_a_number_times_a_learned_vector_equals_plain_pytorch(tmp_path, hidden):
    """FM and DeepFM as published set-ups have them: a number is a factor like an id, with its own weight."""
    rng = np.random.default_rng(3)
    numbers = np.round(rng.normal(size=(160, 2)), 3)
    numbers[rng.random((160, 2)) < 0.2] = np.nan
    users = rng.integers(0, 9, 160)
    clicks = (np.nan_to_num(numbers).sum(1) + rng.normal(size=160) > users / 9).astype(int)
    rows = [
        f"{y},{user}," + ",".join("" if np.isnan(x) else f"{x}" for x in some)
        for y, user, some in zip(clicks, users, numbers, strict=True)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["click,user,x,z", *rows]) + "\n")
    (tmp_path / "schema.toml").write_text(
        'files = ["a.csv"]\n[split]\nfractions = { train = 1.0 }\n[labels.click]\n'
        '[ids]\nuser = { type = "integer" }\nx = { part = "number" }\nz = { part = "number" }\n'
    )
    assert main(["preprocess", "table", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "out")]) == 0
    options = {"hidden": hidden, "id_weights": True}
    config = ph.load_config(
        {
            "mode": "sync",
            "seed": 5,
            "data": {"train": [str(tmp_path / "out/train.h5")], "batch_size": 160, "shuffle": False},
            "tables": {"default": {"dim": 5, "optimizer": {"name": "sgd", "lr": 0.3}, "capacity": "1 MiB"}},
            "model": {"class": "deepfm", **options},
            "train": {"epochs": 20, "optimizer": {"name": "SGD", "lr": 0.3}, "threads": 1},
            "run_dir": str(tmp_path / "run"),
        }
    )
    source = open_sources(config)["train"]
    layout = make_layout(config, source.schema)
    tables = initial_rows(config, layout, 9)
    torch.manual_seed(config.seed)
    model = build_model("deepfm", make_inputs(layout, source.schema), options)
    rows_of = {name: nn.Parameter(torch.tensor(rows)) for name, rows in tables.items()}
    optimizer = torch.optim.SGD([*rows_of.values(), *model.parameters()], lr=0.3)
    factors = torch.tensor(np.nan_to_num(numbers), dtype=torch.float32)
    for _ in range(20):
        vectors = torch.stack(
            [
                rows_of["user"][torch.tensor(users)],
                factors[:, :1] * rows_of["x"][0],
                factors[:, 1:] * rows_of["z"][0],
            ],
            dim=1,
        )
        hidden_part, weights = vectors[:, :, :-1], vectors[:, :, -1]
        pairs = sum((hidden_part[:, i] * hidden_part[:, j]).sum(1) for i in range(3) for j in range(i))
        logits = model.first_order.bias + weights.sum(1) + pairs
        if hidden:
            logits = logits + model.deep(hidden_part.flatten(1))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(clicks).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ph.train(config, quiet=True)
    trained = ph.load(tmp_path / "run" / "latest")
    for name, expected in rows_of.items():
        ids = np.arange(9 if name == "user" else 1)
        got = trained.rows(name, ids)
        np.testing.assert_allclose(got, expected.detach()[ids], rtol=1e-4, atol=1e-6, err_msg=name)
        assert not np.allclose(got, tables[name][ids], atol=1e-3), "nothing was trained"


def initial_rows(config, layout, vocabulary):
    """The rows of the ids below `vocabulary` in each table, before anything is trained."""
    ids = np.arange(vocabulary, dtype=np.uint64)
    keys = mix(ids)
    order = np.argsort(keys)
    found = {}
    for spec, native in zip(layout.tables, ParameterServer(config, layout).tables, strict=True):
        initial = np.empty((vocabulary, spec.dim), np.float32)
        native.pull(keys[order], 1, initial, np.empty(vocabulary, np.uint32))
        found[spec.name] = np.empty_like(initial)
        found[spec.name][order] = initial
    return found


def compare(tmp_path, data, optimizer, pooling, schedules, **changes):
    settings = OPTIMIZERS[optimizer]
    rates = torch_schedules(settings["lr"]) if schedules else {}
    config = ph.load_config(
        tiny_config(
            data,
            **{
                **changes,
                "run_dir": str(tmp_path / "run"),
                "tables.default.optimizer": settings,
                "tables.item.optimizer": settings,
                "tables.user.optimizer": settings,
                "features.tags.pooling": pooling,
                "train.epochs": 10,
                "train.max_steps": STEPS,
                **(SCHEDULES if schedules else {}),
            },
        )
    )
    source = open_sources(config)["train"]
    layout = make_layout(config, source.schema)
    ids = np.arange(VOCABULARY, dtype=np.uint64)
    tables = {
        name: ReferenceTable(rows, settings, rates.get(name, rates.get("other")))
        for name, rows in initial_rows(config, layout, VOCABULARY).items()
    }
    torch.manual_seed(config.seed)
    model = Small(make_inputs(layout, source.schema))
    dense = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = CosineAnnealingLR(dense, T_max=STEPS) if schedules else None
    reader = BatchReader(source, block_rows=16, buffer_blocks=4, seed=config.seed, shuffle=True)
    schedule = make_schedules(config, {"train": source.num_samples})["train"]
    for number in range(1, STEPS + 1):
        step = schedule.step(number)
        view = View(reader.read(step.epoch, step.begin, step.end), tables, layout)
        loss = bce_of_known_labels(model(view), view.labels)
        loss.backward()
        dense.step()
        dense.zero_grad()
        if scheduler is not None:
            scheduler.step()
        for name, used in view.used.items():
            tables[name].step(used, number)

    summary = ph.train(config)
    assert summary["steps"] == STEPS
    trained = ph.load(tmp_path / "run" / "latest")
    for name, table in tables.items():
        expected = torch.stack([r.data for r in table.rows]).numpy()
        got = trained.rows(name, ids)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert not np.allclose(expected, 0, atol=1e-3), "nothing was trained"
    for name, expected in model.state_dict().items():
        np.testing.assert_allclose(
            trained.model().state_dict()[name].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert set(trained_rows(tmp_path / "run")) == set(tables)


def test_runs_are_bit_identical_and_seeds_matter(tmp_path):
    from tests.support.tiny import run_digest

    data = write_tiny(tmp_path / "train.h5", 200)
    base = tiny_config(data, **{"train.epochs": 2})
    digests = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        ph.train(copy.deepcopy(base), set={"seed": seed, "run_dir": str(tmp_path / name)})
        digests.append(run_digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]
