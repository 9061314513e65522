"""Writes splits whose samples come from memory as files that the ranks of a job share.

Each rank has read all of the input; which rank writes a file changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import (
    FileReport,
    Outputs,
    label_rate,
    make_directory,
    numbered,
    sum_and_counts,
)
from persia_hpc.preprocess.pieces import write_pieces
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, once
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.writer import DatasetWriter

BLOCK_ROWS = 65_536
MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Part:
    """Describes a file: the samples [begin, end) of those that `take(begin, end)` makes."""

    name: str
    schema: DatasetSchema
    begin: int
    end: int
    take: Callable[[int, int], SampleBatch]


def file_names(splits: Iterable[str], shards: int) -> list[str]:
    """Returns the names of the files of splits, of which the training data are so many.

    Raises UserError for a number of shards that can't be.
    """
    if not 1 <= shards <= MOST_SHARDS:
        raise UserError(f"--shards {shards}: expected a number from 1 to {MOST_SHARDS:,}")
    train = numbered("train", shards, 3) if shards > 1 else ["train.h5"]
    return [name for split in splits for name in (train if split == "train" else [f"{split}.h5"])]


def cut(
    names: Sequence[str], schema: DatasetSchema, rows: int, take: Callable[[int, int], SampleBatch]
) -> list[Part]:
    """Returns the files of these names, which have about equally many of the rows."""
    bounds = [rows * k // len(names) for k in range(len(names) + 1)]
    return [Part(name, schema, bounds[k], bounds[k + 1], take) for k, name in enumerate(names)]


def is_done(team: Team, outputs: Outputs) -> bool:
    """Returns whether all files are there already.

    Collective over `team`.
    Raises UserError as `Outputs.missing` does.
    """
    return once(team, outputs.up_to_date)


def write_parts(
    team: Team,
    outputs: Outputs,
    parts: Sequence[Part],
    encoding: Mapping[str, Any],
    title: str,
    id_dtypes: Mapping[str, str] | None = None,
    **options: Any,
) -> list[FileReport] | None:
    """Writes the missing files; returns a report on each in the order of `parts`, None if none was missing.

    parts: all files of `outputs`, in their order. encoding: what gives the values their meaning. id_dtypes,
    options: as `DatasetWriter` takes them.
    Collective over `team`.
    Raises UserError for a file without rows, otherwise what `write_pieces` raises.
    """

    def look() -> list[str]:
        if empty := [part.name for part in parts if part.begin == part.end]:
            raise UserError(
                f"{', '.join(empty)}: got no rows, expected at least one; change the split or add input"
            )
        make_directory(outputs.directory)
        return outputs.missing()

    missing = set(once(team, look))  # ranks may see different files
    outputs.encode_together(team, lambda: encoding)

    def write(i: int, progress: Progress) -> list[FileReport]:
        part, labels = parts[i], np.zeros(3)
        dtypes = {name: kind for name, kind in (id_dtypes or {}).items() if name in part.schema.feature_names}
        with DatasetWriter(
            outputs.directory / part.name,
            outputs.named(part.schema),
            id_dtypes=dtypes,
            preprocessing=outputs.settings,
            **options,
        ) as writer:
            for begin in range(part.begin, part.end, BLOCK_ROWS):
                batch = part.take(begin, min(begin + BLOCK_ROWS, part.end))
                writer.write(batch)
                labels += sum_and_counts(batch.labels)
                progress.add(batch.num_samples)
        return [FileReport(outputs.directory / part.name, writer.num_samples, label_rate(labels))]

    sizes = [part.end - part.begin for part in parts]
    wanted = [i for i, part in enumerate(parts) if part.name in missing]
    reports = write_pieces(team, outputs, sizes, wanted, write, title, unit=" rows")
    order = {part.name: i for i, part in enumerate(parts)}
    return reports and sorted(reports, key=lambda report: order[report.path.name])
