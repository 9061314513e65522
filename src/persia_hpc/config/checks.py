"""Checks what must hold between the keys of a configuration, and the options that depend on a name."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from .export import check_export
from .learning_rate import SCHEDULES
from .metric_names import FORMS, asked_metrics, base_of, name_problem, own_names, watch_problem
from .options import Fail, check_import_path, check_number, did_you_mean, named_options, nearest, with_name
from .retrieval import resolve_retrieval
from .sequences import resolve_sequences
from .tasks import check_tasks, resolve_task
from .types import (
    INITS,
    MAX_PAIRS,
    MAX_RANKS,
    METRICS,
    MODELS,
    ROLE_KEYS,
    TABLE_OPTIMIZERS,
    Config,
    TableConfig,
)


def resolve_options(raw: dict[str, Any], fail: Fail) -> None:
    """Fills in, in place, the tables whose keys depend on a name: optimizers, init, early stop, per_node."""
    tables = raw.get("tables")
    if isinstance(tables, dict):
        for name, table in tables.items():
            if isinstance(table, dict):
                path = ("tables", name)
                table["optimizer"] = named_options(
                    table.get("optimizer", {}), "adagrad", TABLE_OPTIMIZERS, (*path, "optimizer"), fail
                )
                table["schedule"] = _schedule(table.get("schedule", {}), (*path, "schedule"), fail)
                table["init"] = named_options(table.get("init", {}), "uniform", INITS, (*path, "init"), fail)
    tasks = raw.get("tasks")
    if isinstance(tasks, dict):
        for name, task in tasks.items():
            resolve_task(task, ("tasks", name), fail)
    train = raw.setdefault("train", {})
    if isinstance(train, dict):
        train["optimizer"] = _dense_optimizer(train.get("optimizer", {"name": "Adam", "lr": 1e-3}), fail)
        train["schedule"] = _schedule(train.get("schedule", {}), ("train", "schedule"), fail)
        if train.get("early_stop") is not None:
            train["early_stop"] = _early_stop(train["early_stop"], fail)
        if train.get("plateau") is not None:
            train["plateau"] = _plateau(train["plateau"], fail)
        if train.get("keep_best") is not None:
            train["keep_best"] = _keep_best(train["keep_best"], fail)
    ranks = raw.get("ranks")
    if isinstance(ranks, dict) and ranks.get("per_node") is not None:
        ranks["per_node"] = _per_node(ranks, fail)


def check_config(config: Config, raw: Mapping[str, Any], fail: Fail) -> Config:
    """Refuses contradictions; the configuration with what `sync` and `features.NAME.dim` imply."""
    if config.synchronous:
        mode = f'mode = "{config.mode}"'
        if raw.get("staleness_bound"):
            problem = f'= {config.staleness_bound}: {mode} has no staleness; leave it out, or use "hybrid"'
            raise fail(("staleness_bound",), problem)
        if raw.get("apply") == "batch":
            raise fail(("apply",), f"= 'batch': {mode} applies whole steps; leave it out or write \"step\"")
        config = dataclasses.replace(config, staleness_bound=0, apply="step")
    if config.lookahead != Config.lookahead and config.mode != "fresh":
        raise fail(("lookahead",), f'= {config.lookahead}: only mode = "fresh" asks ahead; leave it out')
    for key in ("prometheus_file", "prometheus_port"):
        if getattr(config.metrics, key) is not None and not config.metrics.prometheus:
            raise fail(("metrics", key), ": it needs metrics.prometheus = true; add that, or leave it out")
    if config.mode == "async":
        for key, value, why in (
            ("exact", config.exact, "has no order to keep"),
            ("apply", config.apply == "step", "has no step of all trainers to apply"),
        ):
            if value:
                raise fail((key,), f': mode = "async" {why}; leave {key} out, or use "hybrid"')
    counts = config.ranks.counts()
    if (pairs := counts["parameter_servers"] * counts["embedding_workers"]) > MAX_PAIRS:
        problem = f"parameter_servers * embedding_workers = {pairs}: expected at most {MAX_PAIRS}"
        raise fail(("ranks",), f"{problem}, as each pair has rings of its own")
    _check_reuse(config, fail)
    _check_data(config, fail)
    _check_follow(config, fail)
    check_export(config.export, fail)
    _check_train(config, fail)
    if ":" not in config.model.class_name:
        if config.model.class_name not in MODELS:
            problem = f'= {config.model.class_name!r}: expected a built-in model or "module:Class"'
            raise fail(("model", "class"), problem + nearest(config.model.class_name, MODELS))
    else:
        check_import_path(config.model.class_name, ("model", "class"), fail)
    for name, table in config.tables.items():
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in name):
            raise fail(("tables", repr(name)), ": checkpoints can't hold this name; choose another")
        if table.buckets & (table.buckets - 1):
            raise fail(("tables", name, "buckets"), f"= {table.buckets}: expected a power of two")
        if table.capacity_bytes <= 0:
            raise fail(("tables", name, "capacity"), f"= {table.capacity!r}: expected more than 0 bytes")
        _check_disk(table, ("tables", name), fail)
        _check_lifetime(table, config.staleness_bound, ("tables", name), fail)
    config = resolve_retrieval(resolve_sequences(config, raw, fail), raw, fail)
    return _check_features(config, fail)


def _check_reuse(config: Config, fail: Fail) -> None:
    steps, counts = config.wire.reuse_steps, config.ranks.counts()
    workers = -(-counts["embedding_workers"] // counts["trainers"])  # of a trainer, which take turns
    if steps > config.staleness_bound:
        problem = (
            f"at most staleness_bound = {config.staleness_bound}, as rows grow staler until they are used"
        )
    elif 0 < steps < workers:
        problem = f"at least {workers}: so many embedding workers of a trainer take turns"
    elif steps and config.exact and workers > 1:
        problem = "0 with exact = true and several embedding workers a trainer: results would depend on them"
    else:
        return
    raise fail(("wire", "reuse_steps"), f"= {steps}: expected {problem}")


def _check_disk(table: TableConfig, path: tuple[str, ...], fail: Fail) -> None:
    if table.disk is None:
        return
    if not table.disk.path or "\0" in table.disk.path:
        raise fail((*path, "disk", "path"), f"= {table.disk.path!r}: expected a directory")
    if table.disk.capacity_bytes <= 0:
        raise fail((*path, "disk", "capacity"), f"= {table.disk.capacity!r}: expected more than 0 bytes")
    if table.eviction != "lru" and table.disk.on_full == "evict":
        raise fail(
            (*path, "disk", "on_full"),
            "= 'evict': only eviction = 'lru' knows which rows are in flight, which must stay; or use 'stop'",
        )


def _check_lifetime(table: TableConfig, staleness_bound: int, path: tuple[str, ...], fail: Fail) -> None:
    if table.ttl and table.eviction != "lru":
        raise fail((*path, "ttl"), f"= {table.ttl}: only eviction = 'lru' knows when a row was used last")
    if table.ttl and table.ttl <= staleness_bound:  # else a row may expire while its gradient is on its way
        raise fail(
            (*path, "ttl"),
            f"= {table.ttl}: expected 0 (none) or more than staleness_bound = {staleness_bound}",
        )
    for key, value in table.admission.items():
        if key not in ("after", "probability"):
            raise fail(
                (*path, "admission", key), f"is not a known key{nearest(key, ('after', 'probability'))}"
            )
        check_number(key, value, (*path, "admission", key), fail)
        if key == "after" and not (isinstance(value, int) and 1 <= value <= 255):
            raise fail((*path, "admission", key), f"= {value!r}: expected an integer from 1 to 255")
        if key == "probability" and not 0 < value <= 1:
            raise fail((*path, "admission", key), f"= {value!r}: expected above 0 and at most 1")


def _dense_optimizer(given: Any, fail: Fail) -> dict[str, Any]:
    # Which arguments fit is known to torch alone: the trainer checks them against the optimizer's signature.
    path = ("train", "optimizer")
    options = with_name(given, "Adam", path, fail)
    groups = options.get("groups", [])
    for group in groups if isinstance(groups, list) else [groups]:
        if not isinstance(group, Mapping) or not isinstance(group.get("match"), str) or len(group) < 2:
            example = '[{ match = "deep.*", weight_decay = 1e-5 }]'
            raise fail((*path, "groups"), f"= {groups!r}: expected a list of tables such as {example}")
    return options


def _schedule(given: Any, path: tuple[str, ...], fail: Fail) -> dict[str, Any]:
    options = with_name(given, "constant", path, fail)
    name = options["name"]
    if name not in SCHEDULES:
        problem = f"= {name!r}: expected one of {', '.join(SCHEDULES)}{did_you_mean(name, SCHEDULES)}"
        raise fail((*path, "name"), problem)
    known = SCHEDULES[name]
    for key, value in options.items():
        if key == "name" or (value is None and key in known):
            continue
        if key not in known:
            raise fail((*path, key), f"is not an option of {name!r}{nearest(key, known)}")
        if key in ("warmup_steps", "steps", "every"):
            least = 0 if key == "warmup_steps" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise fail((*path, key), f"= {value!r}: expected an integer of at least {least}")
            continue
        check_number(key, value, (*path, key), fail)
        if not 0 <= value <= 1 or (value == 0 and key != "final"):
            low = "0" if key == "final" else "above 0"
            raise fail((*path, key), f"= {value}: expected a value from {low} to 1")
        options[key] = float(value)
    if name == "step" and options.get("every") is None:
        raise fail((*path, "every"), 'is missing: name = "step" needs it, for instance every = 1000')
    return {"name": name, **known, **{k: v for k, v in options.items() if v is not None}}


def _early_stop(given: Any, fail: Fail) -> dict[str, Any]:
    path = ("train", "early_stop")
    defaults = {"metric": "auc", "patience": 3, "min_delta": 0.0}
    return _patient(_watched(given, defaults, path, fail), path, fail)


def _plateau(given: Any, fail: Fail) -> dict[str, Any]:
    path = ("train", "plateau")
    defaults = {"metric": "auc", "patience": 1, "min_delta": 0.0, "factor": 0.1}
    out = _patient(_watched(given, defaults, path, fail), path, fail)
    check_number("factor", out["factor"], (*path, "factor"), fail)
    if not 0 < out["factor"] < 1:
        raise fail((*path, "factor"), f"= {out['factor']}: expected a value above 0 and below 1")
    return out


def _patient(out: dict[str, Any], path: tuple[str, ...], fail: Fail) -> dict[str, Any]:
    patience = out["patience"]
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise fail((*path, "patience"), f"= {patience!r}: expected an integer of at least 1")
    check_number("min_delta", out["min_delta"], (*path, "min_delta"), fail)
    return out


def _keep_best(given: Any, fail: Fail) -> bool | dict[str, Any]:
    if isinstance(given, bool):
        return given
    given = {"metric": given} if isinstance(given, str) else given
    return _watched(given, {"metric": "auc"}, ("train", "keep_best"), fail)


def _watched(given: Any, defaults: Mapping[str, Any], path: tuple[str, ...], fail: Fail) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        example = ", ".join(f"{k} = {json.dumps(v)}" for k, v in defaults.items())
        raise fail(path, f"= {given!r}: expected a table such as {{ {example} }}")
    for key in given:
        if key not in defaults and key != "mode":
            raise fail((*path, str(key)), f"is not a known key{nearest(str(key), [*defaults, 'mode'])}")
    out = {**defaults, **{key: value for key, value in given.items() if value is not None}}
    if not isinstance(out["metric"], str):
        raise fail((*path, "metric"), f"= {out['metric']!r}: expected a string")
    if out.get("mode", "max") not in ("max", "min"):
        raise fail((*path, "mode"), f'= {out["mode"]!r}: expected "max" (larger is better) or "min"')
    return out


def _per_node(ranks: Mapping[str, Any], fail: Fail) -> dict[str, int]:
    path, given = ("ranks", "per_node"), ranks["per_node"]
    both = [role for role in ROLE_KEYS if role in ranks]
    if both:
        raise fail(
            path, f"and ranks.{both[0]} are both written; write the counts per job or per node, not both"
        )
    if not isinstance(given, Mapping):
        raise fail(path, f"= {given!r}: expected a table such as {{ parameter_servers = 1, trainers = 4 }}")
    for key, value in given.items():
        if key not in ROLE_KEYS:
            raise fail((*path, str(key)), f"is not a known key{nearest(str(key), ROLE_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANKS:
            raise fail((*path, str(key)), f"= {value!r}: expected an integer from 1 to {MAX_RANKS}")
    return {role: given.get(role, 1) for role in ROLE_KEYS}


def _check_data(config: Config, fail: Fail) -> None:
    if not config.data.train:
        raise fail(("data", "train"), "is empty: expected at least one HDF5 file or pattern")
    for split in ("train", "valid", "test"):
        if "" in getattr(config.data, split):
            raise fail(("data", split), "contains an empty path")
    if config.data.features is not None and not config.data.features:
        raise fail(("data", "features"), "is empty: expected at least one feature; leave it out to use all")
    if config.data.transform is not None:
        check_import_path(config.data.transform, ("data", "transform"), fail)


def _check_follow(config: Config, fail: Fail) -> None:
    data = config.data
    if not data.follow:
        if data.follow_seconds:
            raise fail(
                ("data", "follow_seconds"),
                f"= {data.follow_seconds:g}: data.follow, which would wait so long, is false; set it",
            )
        return
    if data.limit is not None:
        raise fail(
            ("data", "limit"), f"= {data.limit}: data.follow has no end to count to; use train.max_steps"
        )
    if config.train.epochs > 1:
        raise fail(
            ("train", "epochs"),
            f"= {config.train.epochs}: data.follow trains on each sample once; leave it out",
        )
    schedules: list[tuple[tuple[str, ...], dict[str, Any]]] = [(("train",), config.train.schedule)]
    schedules += [(("tables", name), table.schedule) for name, table in config.tables.items()]
    for path, schedule in schedules:
        if schedule["name"] == "cosine" and schedule["steps"] is None:
            raise fail(
                (*path, "schedule", "steps"),
                "is missing: data.follow has no last step at which a cosine could end; write steps = ...",
            )


def _check_train(config: Config, fail: Fail) -> None:
    train = config.train
    check_tasks(config, fail)
    for metric in train.metrics:
        if ":" in metric:
            check_import_path(metric, ("train", "metrics"), fail)
        elif unknown := name_problem(metric):
            raise fail(("train", "metrics"), f"= {metric!r}: {unknown}{did_you_mean(metric, FORMS)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", train.device):
        raise fail(("train", "device"), f"= {train.device!r}: expected auto, cpu, cuda or cuda:N")
    if train.compile and train.cuda_graphs:
        raise fail(("train", "compile"), "and train.cuda_graphs are both true: expected at most one of them")
    if train.average is not None and train.average >= 1:
        raise fail(("train", "average"), f"= {train.average}: expected a decay above 0 and below 1, as 0.999")
    if train.average is not None and config.mode == "async":
        problem = f'= {train.average}: in mode = "async" trainers have no step in common to average'
        raise fail(("train", "average"), problem)
    if train.bucket_bytes % 4:
        raise fail(("train", "bucket_bytes"), f"= {train.bucket_bytes}: expected a multiple of 4")
    if train.dense_wire == "bf16" and train.reducer == "horovod":
        problem = '= "bf16": Horovod can\'t sum it; use train.reducer = "mpi" or "nccl", or "fp16"'
        raise fail(("train", "dense_wire"), problem)
    watching = (("early_stop", train.early_stop), ("keep_best", train.keep_best), ("plateau", train.plateau))
    asked = asked_metrics(config)
    for key, given in watching:
        if given is None or given is False:
            continue
        metric = given["metric"] if isinstance(given, Mapping) else "auc"
        if unwatchable := watch_problem(metric, asked):
            raise fail(("train", key, "metric"), f"= {metric!r}: {unwatchable}")
        names = [*METRICS, *asked, *own_names(asked)]
        if metric not in names and base_of(metric, asked) is None:  # labels are known later
            problem = f"= {metric!r}: expected a metric that is evaluated"
            raise fail(("train", key, "metric"), problem + nearest(metric, dict.fromkeys(names)))
        if not config.data.valid:
            raise fail(("train", key), "looks at data.valid, which isn't given; add data.valid")
    if train.restore_best:
        path = ("train", "restore_best")
        if train.keep_best is False:
            raise fail(path, "= true, but train.keep_best is false: nothing would be kept to go back to")
        if not config.data.valid:
            raise fail(path, "looks at data.valid, which isn't given; add data.valid")
        if not train.evaluate_at_end:
            raise fail(path, "= true, but train.evaluate_at_end is false, and it is for that alone")
    if train.evaluate_every and not config.data.valid and not train.progressive:
        raise fail(
            ("train", "evaluate_every"),
            f"= {train.evaluate_every} evaluates data.valid, which isn't given; add data.valid",
        )


def _check_features(config: Config, fail: Fail) -> Config:
    tables = dict(config.tables)
    dims: dict[str, tuple[str, int]] = {}
    for name, feature in config.features.items():
        path = ("features", name)
        if feature.table is not None and feature.table not in tables:
            problem = (
                f"= {feature.table!r}: there is no [tables.{feature.table}]; add it, or leave `table` out"
            )
            raise fail((*path, "table"), problem + did_you_mean(feature.table, tables))
        used = config.data.features
        if used is not None and name not in used and feature.sampled is None:
            raise fail(path, f"is configured, but data.features leaves it out{nearest(name, used)}")
        if feature.pooling == "sequence" and feature.max_length is None:
            raise fail(
                path, 'has pooling = "sequence", which needs max_length (the last ids are kept), e.g. 50'
            )
        if feature.dim is None:
            continue
        table = feature.table or name
        if table in config.tables and config.tables[table].dim != feature.dim:
            raise fail(
                (*path, "dim"),
                f"= {feature.dim}, but its table {table!r} has dim {config.tables[table].dim}; "
                "features sharing a table have the table's dim",
            )
        other, dim = dims.setdefault(table, (name, feature.dim))
        if dim != feature.dim:
            raise fail(
                (*path, "dim"), f"= {feature.dim}, but {other!r}, which shares table {table!r}, has dim {dim}"
            )
        if table not in tables:
            tables[table] = dataclasses.replace(config.table("default"), dim=feature.dim)
    return dataclasses.replace(config, tables=tables)
