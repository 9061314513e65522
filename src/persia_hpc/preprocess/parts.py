"""Writes splits whose samples come from memory as files that the ranks of a job share.

Each rank has read all of the input; which rank writes a file changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.frames import short
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
from persia_hpc.samples.encoding import read_encoding, sealed
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


def is_done(team: Team, outputs: Outputs, bad_lines: BadLines) -> bool:
    """Returns whether all files are there already.

    Collective over `team`.
    Raises UserError as `Outputs.missing` does, and if more lines were left out of them than may be.
    """

    def look() -> bool:
        if not outputs.up_to_date():
            return False
        stored = outputs.stored(outputs.names[0])
        bad_lines.restore(range(len(bad_lines.pieces)), stored.get("lines"))
        bad_lines.check()
        return True

    return once(team, look)


def check_given(given: Path | None, content: Mapping[str, Any]) -> None:
    """Checks the encoding that `--encoding` names against that of a source which learns none.

    Raises UserError if it is another one.
    """
    if given is None:
        return
    found, expected = read_encoding(given), sealed(content)
    if found["digest"] != expected["digest"]:
        keys = [k for k in {**expected, **found} if k != "digest" and found.get(k) != expected.get(k)]
        got, wanted = ({k: each[k] for k in keys if k in each} for each in (found, expected))
        raise UserError(
            f"--encoding {given}: got one of other data ({_shown(got)}), expected {_shown(wanted)}; ids of "
            "these data depend on nothing else, so leave it out, or name the folder of such data"
        )


def _shown(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {short(str(value))}" for key, value in content.items()) or "less"


def write_parts(
    team: Team,
    outputs: Outputs,
    parts: Sequence[Part],
    encoding: Mapping[str, Any],
    title: str,
    bad_lines: BadLines,
    id_dtypes: Mapping[str, str] | None = None,
    **options: Any,
) -> list[FileReport | str] | None:
    """Writes the missing files; returns what to print, with a report on each; None if none was missing.

    parts: all files of `outputs`, in their order. encoding: what gives the values their meaning. bad_lines:
    what is known of all lines of the input. id_dtypes, options: as `DatasetWriter` takes them.
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
    if bad_lines.count:
        outputs.settings["lines"] = bad_lines.setting(range(len(bad_lines.pieces)))

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
    if reports is None:
        return None
    return [*sorted(reports, key=lambda report: order[report.path.name]), *bad_lines.report()]
