"""Prepares Taobao display advertising: impressions joined with what is known of advertisement and user.

The join is written to a Parquet file, which is then converted like any table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from persia_hpc.durable import replacing
from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, make_directory
from persia_hpc.preprocess.team import Team, once

from .table import parallel as table_shards
from .table import prepare as table

FILES = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv")
LAST_DAY = 1_494_604_800  # 13 May 2017 in China, seconds since 1970
JOINED = "joined.parquet"
USER_CODES = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
AD_IDS = ("cate_id", "campaign_id", "customer", "brand")
SCHEMA = f"""\
files = ["{JOINED}"]
time = "time_stamp"
[split]
by = "column"
column = "split"
values = {{ train = ["train"], test = ["test"] }}
[labels.click]
column = "clk"
[dense.price]
missing = 0
transform = ["log1p", "standardize"]
[ids]
user = {{ type = "integer" }}
adgroup = {{ column = "adgroup_id", type = "integer" }}
pid = {{ type = "string" }}
""" + "".join(f'{name} = {{ type = "integer" }}\n' for name in (*AD_IDS, *USER_CODES))


@dataclass(frozen=True)
class TaobaoAdOptions:
    """Holds the options of `persia-hpc preprocess taobao_ad`.

    input: directory with the three CSV files
    shard_bytes: as in `TableOptions`, applied to the joined table
    """

    out: Path
    input: Path
    overwrite: bool = False
    shard_bytes: int | None = None


def _scan(path: Path, columns: tuple[str, ...]) -> pl.LazyFrame:
    prices = {"price": pl.Float64} if "price" in columns else None  # the first ones may be whole numbers
    frame = pl.scan_csv(path, null_values=["NULL"], schema_overrides=prices, glob=False)
    try:
        names = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: can't be read as CSV ({_first_line(error)})") from error
    # One of the columns of the original has a space behind its name.
    frame = frame.rename({name: name.strip() for name in names})
    missing = [name for name in columns if name not in {n.strip() for n in names}]
    if missing:
        raise UserError(f"{path}: got columns {', '.join(names)}, expected also {', '.join(missing)}")
    return frame.select(columns)


def join(folder: Path, to: Path) -> None:
    """Writes the joined rows to a Parquet file, in the order of raw_sample.csv.

    Raises UserError for files that can't be read or joined, or that lack a column.
    """
    samples = _scan(folder / FILES[0], ("user", "time_stamp", "adgroup_id", "pid", "clk"))
    ads = _scan(folder / FILES[1], ("adgroup_id", *AD_IDS, "price"))
    users = _scan(folder / FILES[2], ("userid", *USER_CODES))
    day = pl.when(pl.col("time_stamp") < LAST_DAY).then(pl.lit("train")).otherwise(pl.lit("test"))
    joined = (
        samples.join(ads, on="adgroup_id", how="left", maintain_order="left")
        .join(users, left_on="user", right_on="userid", how="left", maintain_order="left")
        .with_columns(day.alias("split"))
    )
    try:
        _check_once(ads, "adgroup_id", folder / FILES[1])
        _check_once(users, "userid", folder / FILES[2])
        with replacing(to) as partial:
            joined.sink_parquet(partial)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{folder}: can't be joined ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_once(frame: pl.LazyFrame, key: str, path: Path) -> None:
    """Checks that no value of the key is in two rows, each of which would be joined with all its samples.

    Raises UserError that names one.
    """
    twice = frame.group_by(key).len().filter(pl.col("len") > 1).sort(key).head(1).collect()
    if len(twice):
        value, count = twice.row(0)
        raise UserError(f"{path}: {key}: got {value!r} in {count} rows, expected each in one")


def prepare(options: TaobaoAdOptions) -> list[FileReport | str] | None:
    """Writes train.h5 and test.h5; returns what to print at the end, None when they were up to date.

    Raises UserError for files that are not those of this data set.
    """
    return table.prepare(_table(options))


def share(options: TaobaoAdOptions, team: Team) -> list[FileReport | str] | None:
    """Writes the shards with all ranks, after one rank has joined the files; returns what to print.

    Collective over `team`.
    Raises UserError or PersiaError as `table.parallel.prepare` does.
    """
    once(team, lambda: _table(options))
    return table_shards.prepare(_options(options), team)


def _options(options: TaobaoAdOptions) -> table.TableOptions:
    return table.TableOptions(
        options.out, options.out / "joined.toml", options.overwrite, options.shard_bytes
    )


def _table(options: TaobaoAdOptions) -> table.TableOptions:
    """Joins the files, unless that is done, and says how to convert the result."""
    sources = [options.input / name for name in FILES]
    for path in sources:
        if not path.is_file():
            raise UserError(f"{path} is missing; --input names the folder of {', '.join(FILES)}")
    make_directory(options.out)
    joined = options.out / JOINED
    newest = max(path.stat().st_mtime_ns for path in sources)
    if not joined.exists() or joined.stat().st_mtime_ns <= newest:
        join(options.input, joined)
    (options.out / "joined.toml").write_text(SCHEMA)
    return _options(options)
