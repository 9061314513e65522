"""Proposes a configuration for data that have been inspected, as commented TOML to be changed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from persia_hpc.config import TableConfig, toml_key, toml_value
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import row_bytes

from .inspection import Frequencies, Inspection

SMALLEST_DIM, LARGEST_DIM = 8, 64
SPARE = 1.25  # capacity for so many times the ids that are expected
STEPS = 200  # that an epoch has at least, before batches become smaller than 2,048
LARGEST_BATCH, SMALLEST_BATCH, SMALLEST_SHARE = 2048, 32, 64


@dataclass(frozen=True)
class Machine:
    """Says what a node has for ranks, and whether Horovod is installed."""

    cores: int
    gpus: int
    horovod: bool = True

    def roles(self, batch: int) -> tuple[int, int, int]:
        """Returns the ranks of servers, workers and trainers of a first run: a trainer for each GPU.

        Without GPUs half of the cores train, and a quarter each serve and feed them; but a trainer has a
        share of the batch that is worth a step.
        """
        cores = self.gpus or max(1, self.cores - 2 * max(1, self.cores // 4))
        trainers = min(cores, max(1, batch // SMALLEST_SHARE))
        others = min(max(1, self.cores // 4), trainers)
        return others, others, trainers


def propose(
    schema: DatasetSchema,
    found: Inspection,
    total: int,
    files: Mapping[str, Sequence[str]],
    machine: Machine,
) -> str:
    """Returns a configuration for the samples that `found` counts, as TOML.

    total: samples of the training files, of which `found` may be a part.
    files: the paths or patterns of `train`, `valid` and `test`, and of `schema` at most one; empty ones are
    left out.
    """
    return "\n".join(_lines(schema, found, total, files, machine)) + "\n"


def expected_ids(counts: Frequencies, share: float) -> int:
    """Returns how many different ids all data have at most, of which a share has been counted.

    The next id is a new one with a probability of about (ids seen once) / (ids counted), which only falls
    (Good 1953, "The population frequencies of species").
    """
    ranked = counts.ranked()
    once = int((ranked["count"] == 1).sum())
    unseen = counts.num_ids * (1 / share - 1)
    return ranked.height + math.ceil(unseen * once / max(1, counts.num_ids))


def dim_of(ids: int) -> int:
    """Returns a dim for so many ids: their fourth root, up to a power of two from 8 to 64."""
    root = max(1.0, ids**0.25)
    return min(LARGEST_DIM, max(SMALLEST_DIM, 1 << math.ceil(math.log2(root))))


def _lines(
    schema: DatasetSchema,
    found: Inspection,
    total: int,
    files: Mapping[str, Sequence[str]],
    machine: Machine,
) -> Iterator[str]:
    samples = f"{found.num_samples:,} samples"
    if found.num_samples < total:
        samples = f"the first {found.num_samples:,} of {total:,} samples"
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, 1 << int(math.log2(max(1, total / STEPS)))))
    servers, workers, trainers = machine.roles(batch)
    yield f"# Proposed by `persia-hpc init` from {samples}. Every key: docs/configuration.md"
    yield "# `persia-hpc train FILE --dry-run` says what it needs, `persia-hpc plan FILE` how fast it is."
    yield 'mode = "hybrid"                 # or "sync": rows are never stale, every run gives the same bits'
    yield "staleness_bound = 4             # steps whose updates a row may miss"
    yield "seed = 1"
    yield ""
    with_gpus = f" and {machine.gpus} GPUs" if machine.gpus else ""
    yield f"[ranks]                         # for {machine.cores} cores{with_gpus}"
    yield f"parameter_servers = {servers}"
    yield f"embedding_workers = {workers}"
    yield f"trainers = {trainers}"
    yield ""
    yield "[data]"
    for split in ("train", "valid", "test"):
        if files.get(split):
            yield f"{split} = {toml_value(files[split])}"
        elif split != "train":
            yield f'# {split} = ["…"]              # {_PURPOSE[split]}'
    if files.get("schema"):
        yield f"schema = {toml_value(files['schema'][0])}"
    yield f"batch_size = {batch}               # samples of a step, over all trainers"
    if schema.has_time:
        yield "# shuffle = false               # trains in the order of the files, as in production"
    yield ""
    yield from _tables(schema, found, total, batch)
    yield from _pooling(schema, found)
    yield "[model]                         # options of the built-in ones: docs/configuration.md, [model]"
    yield 'class = "dcn_v2"                # takes tables of any dim; or "my_model:MyModel", an nn.Module'
    yield "hidden = [256, 128]"
    yield "cross_layers = 3"
    yield ""
    yield "[train]"
    yield "epochs = 1"
    yield 'optimizer = { name = "Adam", lr = 1e-3 }'
    if trainers > 1 and not machine.horovod:
        yield "reducer = \"mpi\"                 # sums the trainers' gradients; Horovod isn't installed"
    if len(schema.label_names) == 1:
        yield f'loss = "{_loss(found, 0)}"{_rate(found, 0)}'
    if schema.has_group:
        yield '# metrics = ["gauc", "ndcg@10"] # means over /group'
    if files.get("valid"):
        if found.label_binary.all():
            yield '# early_stop = { metric = "auc", patience = 3 }'
        yield "# evaluate_every = 500          # steps; default: at the end of each epoch"
    if len(schema.label_names) > 1:
        for i, name in enumerate(schema.label_names):
            yield ""
            yield f"[tasks.{toml_key(name)}]"
            yield f'loss = "{_loss(found, i)}"{_rate(found, i)}'


_PURPOSE = {"valid": "early stopping looks here, never at test", "test": "evaluated once, at the end"}


def _tables(schema: DatasetSchema, found: Inspection, total: int, batch: int) -> Iterator[str]:
    yield "# One table for each feature; ids without a row get one as they come. Beyond `capacity` (over all"
    yield "# servers) the rows whose last use is longest ago are dropped."
    yield "[tables]"
    yield 'default = { optimizer = { name = "adagrad", lr = 0.05 } }'
    share = found.num_samples / total if total else 1.0
    for feature in schema.features:
        counts = found.features[feature.name]
        ids = expected_ids(counts, share) if counts.num_ids else 0
        dim = dim_of(ids)
        parts = row_bytes(TableConfig(dim=dim))
        rows = max(ids * SPARE, 2 * batch * max(1, counts.num_ids / max(1, found.num_samples)))
        size = rows * (parts.weights + parts.state + parts.beside)
        seen = f"{counts.ranked().height:,} ids seen" + (f", {ids:,} expected" if share < 1 else "")
        yield (f'{toml_key(feature.name)} = {{ dim = {dim}, capacity = "{_size(size)}" }}  # {seen}')
    yield ""


def _pooling(schema: DatasetSchema, found: Inspection) -> Iterator[str]:
    several = [f for f in schema.features if f.multi]
    if several:
        yield '# Features with several ids a sample. pooling: "sum" or "mean" gives the model one vector,'
        yield '# "jagged" or "sequence" a list, for models such as "din".'
        yield "[features]"
        for feature in several:
            yield _several(feature, found)
        yield ""


def _several(feature: FeatureSchema, found: Inspection) -> str:
    counts = found.features[feature.name]
    mean = counts.num_ids / max(1, found.num_samples)
    return (
        f'{toml_key(feature.name)} = {{ pooling = "sum" }}  # {mean:.3g} ids a sample, at most '
        f"{counts.longest}; `max_length = N` keeps the last N"
    )


def _loss(found: Inspection, label: int) -> str:
    return "bce" if found.label_binary[label] else "mse"


def _rate(found: Inspection, label: int) -> str:
    rate = found.label_rates[label]
    return "" if rate is None else f"                    # mean of the label: {rate:.4g}"


def _size(num_bytes: float) -> str:
    """Returns a capacity of at least so many bytes: whole MiB, and quarters of a GiB from 1 GiB on."""
    if num_bytes <= 2**30:
        return f"{max(1, math.ceil(num_bytes / 2**20))} MiB"
    return f"{math.ceil(num_bytes / 2**28) / 4:g} GiB"
