"""Prepares Adult / Census income (UCI): 8 id features, 5 dense ones, label "earns over 50,000 dollars"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Frame, parse
from persia_hpc.preprocess.lines import TextBlock, read_blocks
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

# In the order of the file. fnlwgt is a sampling weight of the census, education_num orders education.
COLUMNS: dict[str, type[pl.DataType]] = {
    "age": pl.Int64,
    "workclass": pl.String,
    "fnlwgt": pl.Int64,
    "education": pl.String,
    "education_num": pl.Int64,
    "marital_status": pl.String,
    "occupation": pl.String,
    "relationship": pl.String,
    "race": pl.String,
    "gender": pl.String,
    "capital_gain": pl.Int64,
    "capital_loss": pl.Int64,
    "hours_per_week": pl.Int64,
    "native_country": pl.String,
    "income": pl.String,
}
DENSE = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
LOG1P = ("capital_gain", "capital_loss")
IDS = tuple(name for name, kind in COLUMNS.items() if kind == pl.String and name != "income")
SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in IDS), DENSE, ("income_over_50k",))
VARIANTS = ("default", "persia_tutorial")
SOURCE = "UCI Adult (Becker & Kohavi 1996, doi 10.24432/C5XW20), CC BY 4.0"


@dataclass(frozen=True)
class AdultOptions:
    """Holds the options of `persia-hpc preprocess adult`.

    input: directory with adult.data and adult.test; None: see `find_input`
    valid_fraction, seed: used by the default variant only
    """

    out: Path
    input: Path | None = None
    variant: str = "default"
    valid_fraction: float = 0.1
    seed: int = 1
    overwrite: bool = False


def find_input() -> Path:
    """Returns the directory of the bundled data: `datasets/adult`.

    It is looked for in the working directory, then in the source tree that this program runs from, and then
    in the package as a wheel installs it.
    Raises UserError if it is nowhere.
    """
    folder, here = Path("datasets", "adult"), Path(__file__).resolve()
    for place in (folder, here.parents[3] / folder, here.parents[1] / folder):
        if place.is_dir():
            return place
    raise UserError(
        "the Adult data isn't beside the program: name its directory with --input (datasets/adult)"
    )


def _find_file(directory: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".xz"):
        path = directory / (name + suffix)
        if path.is_file():
            return path
    raise UserError(
        f"{directory}: got no {name}, expected it there (or {name}.gz); see datasets/adult/README.md"
    )


def read_file(path: Path) -> Frame:
    """Returns all rows of adult.data or adult.test in file order, with the final dot of the income removed.

    Raises UserError for a file with another layout, with the line number where a row is at fault.
    """
    blocks = list(read_blocks(path))
    if len(blocks) != 1:
        raise UserError(
            f"{path}: got {len(blocks)} blocks of text, expected one of 2 to 4 MB: is it Adult's file?"
        )
    block = blocks[0]
    if block.data.startswith(b"|1x3"):
        _, data = block.data.split(b"\n", 1)
        kept = None if block.kept is None else block.kept[1:] - 1
        block = TextBlock(path, data, block.first_line + 1, block.num_rows - 1, kept)
    block = replace(block, data=block.data.replace(b", ", b","))
    frame = parse(block, COLUMNS, ",")
    for name in DENSE:
        frame.refuse(frame.frame[name].is_null().to_numpy(), name, "an integer")
    income = frame.frame["income"].str.strip_chars_end(".").fill_null("")
    frame.refuse(~income.is_in(["<=50K", ">50K"]).to_numpy(), "income", "'<=50K' or '>50K'")
    cleaned = frame.frame.with_columns(income, pl.col(*IDS).fill_null("?"))
    return Frame(cleaned, path, block)


def categories(frame: pl.DataFrame) -> dict[str, list[str]]:
    """Returns the sorted distinct values of each id feature."""
    return {name: frame[name].unique().sort().to_list() for name in IDS}


def to_batch(
    frame: pl.DataFrame, known: dict[str, list[str]], first_id: int, dense: npt.NDArray[np.float32]
) -> SampleBatch:
    """Returns the rows as samples whose ids are the values' positions in `known`.

    known: the values of each id feature, whose ids count up from `first_id`; a value not listed gets id 0
    Shapes: `dense` is [B, 5] for the B rows of the frame.
    """
    ids = {}
    for name in IDS:
        numbers = np.arange(first_id, first_id + len(known[name]), dtype=np.uint64)
        column = frame[name].replace_strict(known[name], numbers, default=0, return_dtype=pl.UInt64)
        ids[name] = IdColumn(np.ascontiguousarray(column.to_numpy()))
    labels = (frame["income"] == ">50K").to_numpy().astype(np.float32)[:, None]
    return SampleBatch(ids, dense, labels)


def raw_dense(frame: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Returns the dense features as the file has them.

    Shapes: [B, 5] for the B rows of the frame.
    """
    return np.ascontiguousarray(frame.select(DENSE).to_numpy().astype(np.float64))


def prepare(options: AdultOptions) -> list[FileReport] | None:
    """Writes train.h5, test.h5 and, in the default variant, valid.h5; returns None when they were up to date.

    Raises UserError for bad options or input, or if other files are in the way.
    """
    directory = options.input or find_input()
    paths = [_find_file(directory, name) for name in ("adult.data", "adult.test")]
    frames = [read_file(path).frame for path in paths]
    settings: dict[str, Any] = {
        "dataset": "adult",
        "variant": options.variant,
        "inputs": input_identity(paths),
    }
    if options.variant == "persia_tutorial":
        # The original fits its encoder on the test file by itself, so a code can mean another value there.
        known = [categories(frame) for frame in frames]
        dense = [raw_dense(frame) for frame in frames]
        # One for both files all the same: who asks for this variant wants just that.
        content: dict[str, Any] = {"dataset": "adult", "variant": options.variant}
        parts = {"train.h5": 0, "test.h5": 1}
        first_id = 0
    else:
        known = [categories(frames[0])] * 2
        dense, moments = _standardised([raw_dense(frame) for frame in frames])
        content = {"dataset": "adult", "categories": known[0], "standardize": moments}
        parts = {"train.h5": 0, "valid.h5": 0, "test.h5": 1}
        first_id = 1
        settings["options"] = {"valid_fraction": options.valid_fraction, "seed": options.seed}
        settings["categories"] = known[0]
    outputs = Outputs(options.out, list(parts), settings, overwrite=options.overwrite)
    if outputs.up_to_date():
        return None
    outputs.encode(content)
    batches = [
        to_batch(f, k, first_id, d.astype(np.float32)) for f, k, d in zip(frames, known, dense, strict=True)
    ]
    in_valid = valid_rows(batches[0].num_samples, options.valid_fraction, options.seed)
    chosen = {"train.h5": ~in_valid, "valid.h5": in_valid}
    with outputs.write(SCHEMA, id_dtypes=dict.fromkeys(IDS, "uint8"), source=SOURCE) as writer:
        for name, part in parts.items():
            whole = options.variant == "persia_tutorial" or name == "test.h5"
            batch = batches[part]
            writer.write(name, batch if whole else batch.take(np.flatnonzero(chosen[name])))
    return writer.report


def valid_rows(num_rows: int, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Returns which rows go to valid.h5: round(fraction · num_rows) of them, drawn with the seed.

    At least one row goes there and at least one stays.
    Shapes: [num_rows] booleans.
    Raises UserError unless the fraction lies between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--valid-fraction: got {fraction}, expected a number between 0 and 1")
    chosen = np.zeros(num_rows, bool)
    count = min(max(round(fraction * num_rows), 1), num_rows - 1)
    chosen[np.random.default_rng(seed).permutation(num_rows)[:count]] = True
    return chosen


def _standardised(
    parts: list[npt.NDArray[np.float64]],
) -> tuple[list[npt.NDArray[np.float64]], dict[str, list[float]]]:
    """Applies log1p to gains and losses, then scales to mean 0 and deviation 1 over the first part's rows.

    It returns mean and deviation of each column too.
    """
    for part in parts:
        for name in LOG1P:
            part[:, DENSE.index(name)] = np.log1p(part[:, DENSE.index(name)])
    mean, deviation = parts[0].mean(axis=0), parts[0].std(axis=0)
    moments = {name: [float(mean[k]), float(deviation[k])] for k, name in enumerate(DENSE)}
    return [(part - mean) / deviation for part in parts], moments
