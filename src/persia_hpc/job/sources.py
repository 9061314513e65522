"""Opens and checks the splits of a job's data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from persia_hpc.checkpoint.choose import resumed_schema
from persia_hpc.config import Config
from persia_hpc.config.watching import watched_metrics
from persia_hpc.errors import UserError
from persia_hpc.samples.catalogue import Catalogue, open_catalogue
from persia_hpc.samples.downsampled import Downsampled
from persia_hpc.samples.follow import followed_schema
from persia_hpc.samples.formats import load_table
from persia_hpc.samples.source import FileSource, Source, check_labels, check_scorable, open_source
from persia_hpc.tasks import label_check, make_tasks

from .facts import check_columns

LOG = logging.getLogger("persia_hpc")


def open_sources(config: Config, run_dir: str | Path | None = None) -> Mapping[str, FileSource | Catalogue]:
    """Opens the splits that the configuration names and checks them.

    With `data.follow` the training data has a schema, but no samples yet. A run that continues in `run_dir`
    knows the schema even if all files are gone.
    Raises UserError for files that can't be used, or that don't fit the training data.
    """
    sources: dict[str, FileSource] = {}
    for split in ("train", "valid", "test"):
        patterns = getattr(config.data, split)
        if split == "train" and config.data.follow:
            schema = resumed_schema(config, run_dir) or followed_schema(config)
            table = load_table(config.data.schema)  # once: an edit mustn't concern a run that has begun
            sequences = config.features_of_sequences
            sources[split] = FileSource((), schema, 0, config.binary_labels, sequences, table)
        elif patterns:
            sources[split] = open_source(
                patterns,
                features=config.data.features,
                limit=config.data.limit,
                binary_labels=config.binary_labels,
                sequences=config.features_of_sequences,
                schema_file=config.data.schema,
            )
    train = sources.get("train")
    if train is None:
        return sources
    check_labels(train.schema, ", ".join(config.data.train))
    for split, source in sources.items():
        _check_known_labels(config, split, source)
    for split in ("valid", "test"):
        if split in sources:
            check_scorable(sources[split], train.schema, "data.train", labels=True)
            check_columns(config, sources[split].schema, f"data.{split}")
    if config.data.keep_negatives < 1:
        sources["train"] = _without_negatives(config, train)
    check = label_check(config, train.schema)
    for source in sources.values():
        source.check_labels_by(check)
    if config.data.items:
        return {**sources, "items": open_catalogue(config, train.schema, "data.train")}
    return sources


def _without_negatives(config: Config, train: FileSource) -> FileSource:
    """Returns the training data with the share of their negatives that is to be kept.

    Raises UserError for data of several labels, or of which nothing is left, and DataError for damage.
    """
    tasks = make_tasks(config, train.schema).each
    if len(tasks) != 1:
        raise UserError(
            f"data.keep_negatives = {config.data.keep_negatives:g} leaves out negatives of one label, but "
            f"the data have {', '.join(train.schema.label_names)}; write the one to learn as [tasks.LABEL]"
        )
    left = Downsampled(train, tasks[0].label, config.data.keep_negatives, config.seed)
    if not left.num_samples:
        raise UserError(
            f"data.keep_negatives = {config.data.keep_negatives:g} leaves nothing of {train.num_samples:,} "
            "samples, none of which is a positive; keep more"
        )
    return left


def check_sequences(sources: Mapping[str, Source], share: int = 0, shares: int = 1) -> None:
    """Checks the offsets of the features of each sequence, in one of so many shares of all rows.

    Raises UserError for a row in which they differ.
    """
    for source in sources.values():
        if isinstance(source, FileSource):
            source.check_sequences(share, shares)


def _check_known_labels(config: Config, split: str, source: FileSource) -> None:
    """Checks that training data have labels which aren't missing, and warns of labels that are constant.

    Files of older versions don't say it, and neither do files that appear while the job runs.
    Raises UserError if none is known, unless a loss of the user's own may do without.
    """
    if not source.files:
        return
    labels = dict(zip(source.schema.label_names, source.known_labels(), strict=True))
    if config.tasks:
        learned = {task.label or name for name, task in config.tasks.items()}
        labels = {name: facts for name, facts in labels.items() if name in learned}
        if not labels:
            return  # the layout of the tasks says it
    built_in = not any(":" in name for name in config.loss_names)
    if split == "train" and built_in and not any(known for known, *_ in labels.values()):
        raise UserError(
            f"data.train: got no known label in any of {source.num_samples:,} samples "
            f"({', '.join(labels)}: all NaN), expected some to learn from; check `column` and `missing` of "
            "[labels] in the schema and prepare the files again, or list files with labels"
        )
    for name, (known, least, most) in labels.items():
        if known == 0:
            LOG.warning("data.%s: label %s is missing in every sample", split, name)
        elif least == most == 1 and "in_batch_softmax" in config.loss_names:
            if split == "valid":
                _check_no_auc_watched(config, name)  # the label's other classes are other items
        elif least == most and source.num_samples > 1:
            text = "data.%s: label %s is %g in every sample that has it: its AUC is undefined; check the data"
            LOG.warning(f"{text}, and the label's `positive` or `threshold`", split, name, least)


def _check_no_auc_watched(config: Config, label: str) -> None:
    """Checks that nothing watches the AUC of a label that has no negatives.

    Raises UserError if something does.
    """
    for key, metric in watched_metrics(config).items():
        if metric in ("auc", f"auc_{label}"):
            raise UserError(
                f"train.{key} watches {metric}, which needs negatives, but label {label} is 1 in every "
                'sample of data.valid; name another metric, such as "ndcg@10" of a catalogue (data.items)'
            )
