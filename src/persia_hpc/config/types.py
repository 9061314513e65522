"""Defines the configuration as dataclasses: every key, its type, default and allowed values.

`load_config` in reader.py fills and checks them; docs/configuration.md says what each key means.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .export import ExportConfig
from .fields import parse_bytes, setting, toml_key
from .learning_rate import WARMUP
from .losses import BINARY_LOSSES, LOSSES

MAX_RANKS = 100_000  # of a role
MAX_PAIRS = 1_000_000  # of a server and a worker, with rings of their own
ROLE_KEYS = ("parameter_servers", "embedding_workers", "trainers")
# Tests compare the first and the last of these with models/build.py and protocol/wire.py, which say what they
# stand for: a configuration must be read without NumPy and without knowing the trainer.
MODELS = ("dlrm", "dcn_v2", "deepfm", "tower", "din", "mmoe", "ple", "esmm", "two_tower", "sasrec", "hstu")
METRICS = ("auc", "logloss")  # always computed
WIRE_FORMATS = ("fp32", "fp16", "bf16", "scaled_fp16")

# Options of each embedding optimizer with their defaults: torch's, FBGEMM's for row-wise Adagrad.
TABLE_OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "weight_decay": 0.0},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "adagrad": {"lr": 0.05, "eps": 1e-10, "initial_accumulator_value": 0.0, "weight_decay": 0.0},
    "rowwise_adagrad": {"lr": 0.05, "eps": 1e-8, "initial_accumulator_value": 0.0, "weight_decay": 0.0},
    "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    "ftrl": {"lr": 0.05, "initial_accumulator_value": 0.1, "l1": 0.0, "l2": 0.0},
}
INITS: dict[str, dict[str, float]] = {
    "uniform": {"low": -0.01, "high": 0.01},
    "normal": {"mean": 0.0, "std": 0.01},
}


@dataclass(frozen=True)
class RanksConfig:
    """Holds how many ranks each role has, in the job or, with `per_node`, on each node."""

    parameter_servers: int = setting(1, at_least=1, at_most=MAX_RANKS)
    embedding_workers: int = setting(1, at_least=1, at_most=MAX_RANKS)
    trainers: int = setting(1, at_least=1, at_most=MAX_RANKS)
    per_node: dict[str, int] | None = None
    bind_cores: bool = True

    def counts(self, num_nodes: int = 1) -> dict[str, int]:
        """Returns the number of ranks of each role in a job of `num_nodes` nodes."""
        if self.per_node is not None:
            return {role: self.per_node[role] * num_nodes for role in ROLE_KEYS}
        return {role: int(getattr(self, role)) for role in ROLE_KEYS}

    def total(self, num_nodes: int = 1) -> int:
        """Returns the number of ranks of all roles in a job of `num_nodes` nodes."""
        return sum(self.counts(num_nodes).values())


@dataclass(frozen=True)
class DataConfig:
    """Holds which samples are used, in which order, and in batches of what size."""

    train: list[str] = setting()
    valid: list[str] = setting(factory=list)
    test: list[str] = setting(factory=list)
    schema: str | None = None
    items: list[str] = setting(factory=list)
    item_feature: str | None = None
    exclude_feature: str | None = None
    features: list[str] | None = None
    batch_size: int = setting(2048, at_least=1)
    evaluate_batch_size: int = setting(8192, at_least=1)
    shuffle: bool = True
    block_rows: int = setting(16384, at_least=1)
    buffer_blocks: int = setting(16, at_least=1)
    limit: int | None = setting(None, at_least=1)
    prefetch: int = setting(2, at_least=0)
    transform: str | None = None
    follow: bool = False
    follow_seconds: float = setting(0.0, at_least=0)
    keep_negatives: float = setting(1.0, above=0, at_most=1)


@dataclass(frozen=True)
class HashConfig:
    """Holds how a vocabulary is compressed: an id's vector is the sum of `rounds` rows.

    Each of the rows is from a space of its own with `size` rows.
    """

    size: int = setting(at_least=1, at_most=1 << 48)
    rounds: int = setting(2, at_least=1, at_most=16)


@dataclass(frozen=True)
class DiskConfig:
    """Holds where the rows beyond a table's `capacity` go, and how many bytes they may take there."""

    path: str = setting()
    capacity: int | str = setting()
    on_full: str = setting("stop", choices=("stop", "evict"))

    @property
    def capacity_bytes(self) -> int:
        """Returns `capacity`, over all servers, as a number of bytes."""
        return parse_bytes(self.capacity)


@dataclass(frozen=True)
class TableConfig:
    """Describes one embedding table; keys that aren't written are those of [tables.default]."""

    dim: int = setting(16, at_least=1, at_most=4096)
    optimizer: dict[str, Any] = setting(factory=lambda: {"name": "adagrad", **TABLE_OPTIMIZERS["adagrad"]})
    init: dict[str, Any] = setting(factory=lambda: {"name": "uniform", **INITS["uniform"]})
    schedule: dict[str, Any] = setting(factory=lambda: {"name": "constant", **WARMUP})
    hash: HashConfig | None = None
    value_bound: float = setting(0.0, at_least=0)
    clip_norm: float = setting(0.0, at_least=0)
    storage: str = setting("fp32", choices=("fp32", "fp16", "bf16"))
    state_storage: str = setting("fp32", choices=("fp32", "same"))
    capacity: int | str = "4 GiB"
    disk: DiskConfig | None = None
    eviction: str = setting("lru", choices=("lru", "lfu"))
    ttl: int = setting(0, at_least=0, at_most=(1 << 31) - 1)
    admission: dict[str, Any] = setting(factory=dict)
    buckets: int = setting(1024, at_least=1, at_most=1 << 20)

    @property
    def state_dtype(self) -> str:
        """Returns the number format of the optimizer's state."""
        return self.storage if self.state_storage == "same" else "fp32"

    @property
    def capacity_bytes(self) -> int:
        """Returns `capacity` as a number of bytes."""
        return parse_bytes(self.capacity)


@dataclass(frozen=True)
class FeatureConfig:
    """Describes how a feature's ids become a model input."""

    table: str | None = None
    pooling: str = setting("sum", choices=("sum", "mean", "sqrtn", "sequence", "jagged"))
    max_length: int | None = setting(None, at_least=1)
    dim: int | None = setting(None, at_least=1, at_most=4096)
    sampled: dict[str, Any] | None = None


@dataclass(frozen=True)
class SequenceConfig:
    """Holds which features are of one event stream: they have the same number of ids in each sample."""

    features: list[str] = setting()
    pooling: str = setting("jagged", choices=("jagged", "sequence"))
    max_length: int | None = setting(None, at_least=1)


@dataclass(frozen=True)
class ModelConfig:
    """Holds the dense network's name (built-in or "module:Class") and the keyword arguments for making it."""

    class_name: str = setting(key="class")
    arguments: dict[str, Any] = setting(factory=dict)


@dataclass(frozen=True)
class TaskConfig:
    """Describes a task: label, loss, weight in the sum of all, metrics (None: `train.metrics`), own rate."""

    label: str | None = None
    where: str | None = None
    loss: dict[str, Any] = setting(factory=lambda: {"name": "bce", **LOSSES["bce"]})
    weight: float = setting(1.0, at_least=0)
    metrics: list[str] | None = None
    lr: float | None = setting(None, above=0)

    @property
    def num_outputs(self) -> int:
        """Returns how many of the model's outputs are the task's."""
        return int(self.loss.get("classes", 1))


@dataclass(frozen=True)
class TrainConfig:
    """Holds how the dense network is trained, for how long, and when it is evaluated."""

    epochs: int = setting(1, at_least=1)
    max_steps: int | None = setting(None, at_least=1)
    optimizer: dict[str, Any] = setting(factory=lambda: {"name": "Adam", "lr": 1e-3})
    schedule: dict[str, Any] = setting(factory=lambda: {"name": "constant", **WARMUP})
    loss: str = "bce"
    metrics: list[str] = setting(factory=list)
    slices: list[str] = setting(factory=list)
    slice_samples: int = setting(1000, at_least=1)
    progressive: int = setting(0, at_least=0)
    evaluate_every: int = setting(0, at_least=0)
    evaluate_at_end: bool = True
    save: bool = True
    early_stop: dict[str, Any] | None = None
    keep_best: dict[str, Any] | bool | None = None
    restore_best: bool = False
    plateau: dict[str, Any] | None = None
    clip_norm: float | None = setting(None, above=0)
    accumulate: int = setting(1, at_least=1)
    average: float | None = setting(None, above=0)
    max_skipped: int = setting(10, at_least=0)
    amp: str = setting("off", choices=("off", "bf16", "fp16"))
    compile: bool = False
    cuda_graphs: bool = False
    matmul_precision: str = setting("highest", choices=("highest", "high", "medium"))
    device: str = "auto"
    threads: int | None = setting(None, at_least=1)
    trace: int | None = setting(None, at_least=1, at_most=10_000)
    bucket_bytes: int = setting(4 << 20, at_least=4, as_bytes=True)
    reducer: str = setting("horovod", choices=("horovod", "mpi", "nccl"))
    dense_wire: str = setting("fp32", choices=("fp32", "bf16", "fp16"))


@dataclass(frozen=True)
class CheckpointConfig:
    """Holds when a run's state is written, how many checkpoints are kept, and what a run begins with."""

    every: int = setting(0, at_least=0)
    every_seconds: float = setting(0.0, at_least=0)
    full_every: int = setting(1, at_least=1)
    keep: int = setting(2, at_least=1)
    keep_every: int = setting(0, at_least=0)
    resume: bool = False
    init_from: str | None = None
    init_parts: str = setting("all", choices=("all", "dense", "embeddings"))
    init_tables: dict[str, str] = setting(factory=dict)
    init_dim: str = setting("same", choices=("same", "fit"))
    aside_bytes: int = setting(256 << 20, at_least=1 << 20, as_bytes=True)
    grace_seconds: float = setting(120.0, above=0)


@dataclass(frozen=True)
class MetricsConfig:
    """Holds how often ranks write down what they count, and where else than in files that is shown."""

    every_seconds: float = setting(10.0, at_least=0)
    tensorboard: bool = False
    prometheus: bool = False
    prometheus_file: str | None = None
    prometheus_port: int | None = setting(None, at_least=1, at_most=65535)


@dataclass(frozen=True)
class WireConfig:
    """Holds the number formats of rows and gradients in messages, and for how many steps rows are reused."""

    rows: str = setting("fp32", choices=WIRE_FORMATS)
    gradients: str = setting("fp32", choices=WIRE_FORMATS)
    reuse_steps: int = setting(0, at_least=0, at_most=31)


@dataclass(frozen=True)
class TransportConfig:
    """Holds the size of the rings between ranks, and how long a rank waits when nothing moves."""

    ring_bytes: int | None = setting(None, at_least=4096, as_bytes=True)
    memory_grows: bool = False
    stall_seconds: float = setting(60.0, above=0)
    give_up_seconds: float = setting(1800.0, at_least=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Holds a whole configuration, checked and with every default filled in; make it with `load_config`."""

    mode: str = setting("hybrid", choices=("hybrid", "sync", "fresh", "async"))
    staleness_bound: int = setting(4, at_least=0)
    lookahead: int = setting(2, at_least=1, at_most=64)
    exact: bool = False
    apply: str = setting("batch", choices=("batch", "step"))
    seed: int = setting(1, at_least=0, at_most=(1 << 63) - 1)
    server_threads: int = setting(1, at_least=1, at_most=256)
    run_dir: str | None = None
    ranks: RanksConfig = setting(factory=RanksConfig)
    data: DataConfig = setting()
    tables: dict[str, TableConfig] = setting(factory=dict)
    features: dict[str, FeatureConfig] = setting(factory=dict)
    sequences: dict[str, SequenceConfig] = setting(factory=dict)
    model: ModelConfig = setting()
    tasks: dict[str, TaskConfig] = setting(factory=dict)
    train: TrainConfig = setting(factory=TrainConfig)
    checkpoint: CheckpointConfig = setting(factory=CheckpointConfig)
    metrics: MetricsConfig = setting(factory=MetricsConfig)
    export: ExportConfig = setting(factory=ExportConfig)
    wire: WireConfig = setting(factory=WireConfig)
    transport: TransportConfig = setting(factory=TransportConfig)

    def table(self, name: str) -> TableConfig:
        """Returns the table's own configuration, else that of [tables.default]."""
        return self.tables.get(name) or self.tables.get("default") or TableConfig()

    def feature(self, name: str) -> FeatureConfig:
        """Returns the feature's own configuration, else the defaults."""
        return self.features.get(name) or FeatureConfig()

    @property
    def binary_labels(self) -> bool:
        """Returns whether all labels of the data must be 0 or 1; with tasks each has a rule of its own."""
        return not self.tasks and self.train.loss in BINARY_LOSSES

    @property
    def loss_names(self) -> list[str]:
        """Returns the names of the losses that are trained on, built-in or "module:function"."""
        return [str(task.loss["name"]) for task in self.tasks.values()] or [self.train.loss]

    @property
    def dense_optimizer(self) -> dict[str, Any]:
        """Returns `train.optimizer` with a further group for the layers of each task that has a rate."""
        tasks = [
            {"task": name, "number": number, "lr": task.lr}
            for number, (name, task) in enumerate(self.tasks.items())
            if task.lr is not None
        ]
        groups = [*self.train.optimizer.get("groups", []), *tasks]
        return {**self.train.optimizer, "groups": groups} if tasks else self.train.optimizer

    @property
    def features_of_sequences(self) -> dict[str, list[str]]:
        """Returns the features of each [sequences.NAME]."""
        return {name: sequence.features for name, sequence in self.sequences.items()}

    def losses_of(self, labels: Sequence[str]) -> list[str]:
        """Returns the loss of each of the labels that are learned, in their order."""
        return self.loss_names if self.tasks else [self.train.loss] * len(labels)

    @property
    def pull_bound(self) -> int:
        """Returns how many steps' updates a row may miss when it is pulled.

        Reusing a row takes its part of `staleness_bound`.
        """
        return 0 if self.synchronous else self.staleness_bound - self.wire.reuse_steps

    @property
    def synchronous(self) -> bool:
        """Returns whether a step's rows have all updates of the steps before, and its updates are one."""
        return self.mode in ("sync", "fresh")

    @property
    def steps_ahead(self) -> int:
        """Returns how many steps may have been asked for beyond the one that is trained on."""
        return self.data.prefetch + (self.lookahead if self.mode == "fresh" else self.pull_bound)

    def reducer(self, num_trainers: int) -> str | None:
        """Returns what sums the dense gradients of so many trainers; None if nothing has to."""
        return None if num_trainers == 1 or self.mode == "async" else self.train.reducer

    def resolved(self) -> dict[str, Any]:
        """Returns everything in the shape of the TOML file, defaults included; unset options are None."""
        out: dict[str, Any] = _as_toml_shape(self)
        return out

    @property
    def sha256(self) -> str:
        """Returns the hex digest of the resolved configuration without `run_dir` and `checkpoint.resume`."""
        resolved = self.resolved()
        del resolved["run_dir"], resolved["checkpoint"]["resume"]
        text = json.dumps(resolved, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def _as_toml_shape(value: Any) -> Any:
    if isinstance(value, ModelConfig):
        return {"class": value.class_name, **_as_toml_shape(value.arguments)}
    if isinstance(value, RanksConfig) and value.per_node is not None:
        # The counts in the job follow from the number of nodes.
        return {"per_node": dict(value.per_node), "bind_cores": value.bind_cores}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {toml_key(f): _as_toml_shape(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _as_toml_shape(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_as_toml_shape(v) for v in value]
    return value
