"""Decides whether a run may continue from a checkpoint: which settings and data must be the same.

Everything else may change: the number of ranks, the transport, rates of tables, the length of training, how
often things are done, paths of the same data, capacities (as long as the tables keep their buckets).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from persia_hpc.config import Config
from persia_hpc.config.retrieval import logq_source, sampled_features
from persia_hpc.errors import UserError
from persia_hpc.samples.encoding import WAY_OUT, short
from persia_hpc.samples.identity import SampleRange, first_difference
from persia_hpc.samples.schema import DatasetSchema

from .manifest import read_schema

# Patterns of keys: another value would change which samples a step has, or what a stored number means.
FIXED = (
    "seed",
    "data.batch_size",
    "data.block_rows",
    "data.buffer_blocks",
    "data.shuffle",
    "data.features",
    "data.keep_negatives",
    "data.transform",
    "tables.*.dim",
    "tables.*.optimizer.name",
    "tables.*.eviction",
    "tables.*.admission*",
    "tables.*.buckets",
    "tables.*.hash*",
    "features.*",
    "model.*",
    "train.optimizer.name",
    "train.optimizer.groups",
    "tasks.*.lr",
)
# What checkpoints of older versions mean that lack these keys.
UNSAID = {"data.keep_negatives": 1.0}


def check_match(
    where: str,
    manifest: Mapping[str, Any],
    config: Config,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
    data: Sequence[SampleRange] = (),
) -> None:
    """Checks that a run with this configuration and data can continue from a checkpoint.

    where: name of the checkpoint in the message. num_samples: of each split of the run's data. data: the
    digests of its training samples, if they are known.
    Raises UserError naming every difference that prevents it.
    """
    wrong = list(config_differences(manifest["config"], config.resolved()))
    there = read_schema(manifest)
    for name in ("feature_names", "dense_names", "label_names"):
        old, new = getattr(there, name), getattr(schema, name)
        if old != new:
            wrong.append(f"{name.replace('_', ' ')}: {', '.join(old)} there, {', '.join(new)} here")
    if there.label_names == schema.label_names:
        learned, learns = (_learned(c, schema) for c in (manifest["config"], config.resolved()))
        if learned != learns:
            wrong.append(f"labels that are learned: {', '.join(learned)} there, {', '.join(learns)} here")
    if None not in (there.encoding, schema.encoding) and there.encoding != schema.encoding:
        wrong.append(
            f"encoding of the data: {short(str(there.encoding))} there, {short(str(schema.encoding))} here: "
            f"ids or numbers mean other values; {WAY_OUT}"
        )
    if (there_follow := "portions" in manifest) != config.data.follow:
        wrong.append(f"data.follow: {there_follow} there, {config.data.follow} here")
    old_count, new_count = manifest["num_samples"]["train"], num_samples["train"]
    if old_count != new_count and not config.data.follow:
        wrong.append(f"training samples: {old_count} there, {new_count} here")
    known = [SampleRange(**r) for r in manifest.get("data", [])]
    if text := _difference(known, data, "train"):
        wrong.append(f"training data: samples {text} (or other row groups, in Parquet files)")
    if sampled_features(config) or logq_source(config) == "weights":
        old_items, new_items = manifest["num_samples"].get("items"), num_samples.get("items")
        if old_items != new_items:
            wrong.append(f"items in data.items: {old_items} there, {new_items} here: others would be drawn")
        elif text := _difference(known, data, "items"):
            wrong.append(f"items in data.items: rows {text}, so other negatives or shares of items")
    if wrong:
        raise UserError(
            f"{where} doesn't fit this run:\n  "
            + "\n  ".join(wrong)
            + "\nSet these as they were; or start a new "
            "run, with --init-from for what can be taken over"
        )


def _difference(there: Sequence[SampleRange], here: Sequence[SampleRange], split: str) -> str | None:
    """Returns words for the first range of a split in which rows differ, None if there is none."""
    difference = first_difference([r for r in there if r.split == split], here)
    if difference is None:
        return None
    old, new = difference
    same = f" ({old.path} there)" if old.path != new.path else ""
    return f"{new.begin} to {new.end - 1}, in {new.path}{same}: other values here than there"


def _learned(config: Mapping[str, Any], schema: DatasetSchema) -> list[str]:
    """Returns the label of each task, in the order of the model's outputs."""
    tasks = config.get("tasks") or {}  # none in checkpoints of older versions
    return [task["label"] or name for name, task in tasks.items()] or list(schema.label_names)


def config_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yields 'KEY: OLD there, NEW here' for each fixed key in which two configurations differ.

    Both must be resolved. FIXED lists the patterns of fixed keys.
    """
    old, new = UNSAID | dict(flat(there)), UNSAID | dict(flat(here))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and any(fnmatchcase(key, pattern) for pattern in FIXED):
            yield f"{key}: {old.get(key, 'not set')!r} there, {new.get(key, 'not set')!r} here"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each value in nested mappings; turns tuples into lists."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, list | tuple) else value
