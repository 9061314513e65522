"""Holds the facts of a job: what its configuration and its data say, made once and passed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.checkpoint.choose import check_initial, refuse_mismatch
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.matching import check_match
from persia_hpc.config import Config
from persia_hpc.config.metric_names import asked_metrics, built_in, is_grouped, top_of
from persia_hpc.config.options import nearest
from persia_hpc.config.retrieval import ranked_metrics
from persia_hpc.config.watching import check_metrics, writes_checkpoints
from persia_hpc.errors import UserError
from persia_hpc.samples.catalogue import Catalogue
from persia_hpc.samples.identity import SampleRange, sample_ranges
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource, Source
from persia_hpc.schedule import Schedule, make_schedules
from persia_hpc.table_layout import Layout, make_layout

from .task import Task


@dataclass(frozen=True)
class Facts:
    """Holds what every role of a job knows before it starts; the same on all ranks."""

    config: Config
    schema: DatasetSchema  # of the training data
    num_samples: Mapping[str, int]  # of each split
    layout: Layout
    schedules: Mapping[str, Schedule]  # of each split
    data: tuple[SampleRange, ...] = ()  # by which a checkpoint's training samples are known again
    catalogue: tuple[str, ...] | None = None  # features and dense columns of `data.items`, if there is one

    def check_start(self, path: Path | None) -> None:
        """Checks that the run may continue from a checkpoint or, without one, take over what it is told to.

        Raises UserError if it may not, DataError if the manifest is damaged.
        """
        if path is None:
            check_initial(self.config, self.schema)
            return
        check_match(str(path), read_manifest(path), self.config, self.schema, self.num_samples, self.data)

    def check_newest_checkpoint(self, run_dir: str | Path | None) -> None:
        """Checks that a run to be resumed fits the newest checkpoint in its directory.

        Raises UserError if it doesn't.
        """
        refuse_mismatch(self.config, run_dir, self.schema, self.num_samples, self.data)


def make_facts(
    config: Config,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
    data: tuple[SampleRange, ...] = (),
    catalogue: tuple[str, ...] | None = None,
) -> Facts:
    """Returns the facts of a job on data with this schema and these samples of each split.

    data: from `training_data`. catalogue: from `catalogue_columns`.
    Raises UserError if the configuration doesn't fit the data.
    """
    layout = make_layout(config, schema)
    if "train" in num_samples:  # a finished run is taken as it is
        check_metrics(config, layout.tasks.names)
        check_columns(config, schema, "the data")
    for name in ranked_metrics(config) if "items" in num_samples else ():
        top = top_of(name)
        if top is not None and top[1] > num_samples["items"]:
            raise UserError(
                f"metrics: got {name!r}, expected K of at most {num_samples['items']}, the number of "
                "items in data.items; choose a smaller K"
            )
    schedules = make_schedules(config, num_samples)
    return Facts(config, schema, dict(num_samples), layout, schedules, data, catalogue)


def check_columns(config: Config, schema: DatasetSchema, where: str, *, labels: bool = True) -> None:
    """Checks that data have what metrics need: groups, and the features whose ids make slices.

    where: names the data in messages. labels: metrics are computed at all.
    Raises UserError if not.
    """
    train = config.train
    ranked, asked = ranked_metrics(config), built_in(asked_metrics(config))
    grouped = [name for name in asked if is_grouped(name) and name not in ranked]
    if labels and grouped and not schema.has_group:
        raise UserError(
            f"metrics: {', '.join(grouped)} {'is a mean' if len(grouped) == 1 else 'are means'} over "
            f"groups, but {where} has no dataset /group, the user, session or query of each sample; add it, "
            "or leave the metric out"
        )
    for name in train.slices:
        if name not in schema.feature_names:
            raise UserError(
                f"train.slices: {where} has no id feature {name!r}{nearest(name, schema.feature_names)}"
            )
        if schema.feature(name).multi:
            raise UserError(
                f"train.slices: {name!r} has several ids a sample in {where}, expected a feature with one"
            )


def facts_of_sources(config: Config, sources: Mapping[str, Source], *, identify: bool = False) -> Facts:
    """Returns the facts of a job on opened data, of which there is a "train" split.

    identify: whether checkpoints are to be written or continued from.
    Raises UserError if the configuration doesn't fit the data.
    """
    counts = {split: source.num_samples for split, source in sources.items()}
    data = training_data(sources) if identify else ()
    return make_facts(config, sources["train"].schema, counts, data, catalogue_columns(sources))


def catalogue_columns(sources: Mapping[str, Source]) -> tuple[str, ...] | None:
    """Returns the names of features and dense columns that the catalogue has, None if there is none."""
    source = sources.get("items")
    return source.names if isinstance(source, Catalogue) else None


def concerns_checkpoints(config: Config, task: Task) -> bool:
    """Returns whether a job continues from checkpoints or writes any; a loop of the user's own may."""
    return config.checkpoint.resume or task.main is not None or writes_checkpoints(config)


def training_data(sources: Mapping[str, Source]) -> tuple[SampleRange, ...]:
    """Returns the digests by which training samples are known again, and items that may be drawn for them.

    There are none of samples that still appear.

    Raises DataError for damage in what is read.
    """
    train, items = sources.get("train"), sources.get("items")
    of_items = sample_ranges(items.files, split="items") if isinstance(items, Catalogue) else ()
    return (*(sample_ranges(train) if isinstance(train, FileSource) else ()), *of_items)
