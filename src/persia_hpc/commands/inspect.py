"""persia-hpc inspect: what data files hold."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.printable import LINES, printable
from persia_hpc.samples.encoding import short

if TYPE_CHECKING:
    from persia_hpc.preprocess.inspection import Inspection
    from persia_hpc.samples.schema import DatasetSchema

SUMMARY = "what data files hold"
DESCRIPTION = """\
Reads HDF5 or Parquet files as training does, and prints their schema, the number of samples, the mean of each
label, the range of each dense column, and of each id feature how many different ids there are, how often the
most frequent ones appear (their share of all samples), and how many appear once. With --plot each feature's
frequency curve: how often the id of each rank appears, on logarithmic axes, where Zipf's law is a straight
line."""
EXAMPLES = """\
examples:
  persia-hpc inspect data/adult/train.h5
  persia-hpc inspect 'data/criteo/train-*.h5' --limit 10000000 --plot criteo.svg
  persia-hpc inspect data/adult/*.h5 --json adult.json
  persia-hpc inspect 'clicks/day_*.parquet' --schema clicks.toml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("data", nargs="+", metavar="FILE", help="files or globs, read as one")
    parser.add_argument("--schema", default=None, metavar="FILE", help="data.schema, for Parquet files")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="the first N samples only")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="most frequent ids (default: 3)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write it all as JSON")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="curves: .png, .svg or .pdf")


def run(options: argparse.Namespace) -> int:
    """Prints what the files hold.

    Raises UserError for bad arguments and DataError for damaged files.
    """
    from persia_hpc.preprocess.inspection import inspect_source
    from persia_hpc.preprocess.progress import Progress
    from persia_hpc.samples.source import open_source

    for flag, value in (("--limit", options.limit), ("--top", options.top)):
        if value is not None and value < 1:
            raise UserError(f"{flag}: got {value}, expected 1 or more")
    pyplot = None if options.plot is None else _pyplot(options.plot)
    source = open_source(options.data, schema_file=options.schema)
    found: Inspection | None = None
    done = 0
    with Progress("inspect", min(options.limit or source.num_samples, source.num_samples)) as progress:
        for found in inspect_source(source, options.limit):
            progress.add(found.num_samples - done)
            done = found.num_samples
    assert found is not None
    facts = _facts(source.schema, found, options.top)
    print(printable("\n".join(_lines(facts)), LINES))
    if options.json is not None:
        try:
            options.json.write_text(json.dumps({"schema_version": 1, **facts}, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--json: {options.json} can't be written ({error.strerror})") from error
    if pyplot is not None:
        _plot(pyplot, found, options.plot)
    return EXIT_OK


def _facts(schema: DatasetSchema, found: Inspection, top: int) -> dict[str, Any]:
    n = max(1, found.num_samples)
    features = {}
    for spec in schema.features:
        counts = found.features[spec.name]
        ranked = counts.ranked()
        features[spec.name] = {
            "kind": spec.kind,
            "weighted": spec.weighted,
            "ids_per_sample": counts.num_ids / n,
            "longest": counts.longest,
            "empty_samples": counts.empty_samples,
            "different_ids": ranked.height,
            "seen_once": int((ranked["count"] == 1).sum()),
            "top": ranked.head(top).to_dicts(),
        }
    dense = {
        name: {"least": least, "mean": total / n, "most": most}
        for name, least, total, most in zip(
            schema.dense_names,
            found.dense_least.tolist(),
            found.dense_sums.tolist(),
            found.dense_most.tolist(),
            strict=True,
        )
    }
    optional = ("weight", "group", "time")
    return {
        "samples": found.num_samples,
        "encoding": schema.encoding,
        "labels": dict(zip(schema.label_names, found.label_rates, strict=True)),
        "missing_labels": dict(
            zip(schema.label_names, (found.num_samples - found.label_counts).tolist(), strict=True)
        ),
        "constant_labels": [
            name
            for name, least, most in zip(schema.label_names, found.label_least, found.label_most, strict=True)
            if least == most
        ],
        "optional": [name for name in optional if getattr(schema, f"has_{name}")],
        "dense": dense,
        "features": features,
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    samples = facts["samples"]
    yield f"{samples:,} samples" + "".join(f", with {name}" for name in facts["optional"])
    yield f"encoding {short(facts['encoding']) if facts['encoding'] else 'not named'}"
    if not facts["labels"]:
        yield "no labels"
    for name, rate in facts["labels"].items():
        missing = facts["missing_labels"][name]
        line = f"label {name}: " + ("no value" if rate is None else f"mean {rate:.5f}")
        line += f", missing in {missing:,} samples" if missing else ""
        same = "wherever it is known" if missing else "in every sample"
        yield line + (f", the same {same}: its AUC is undefined" if name in facts["constant_labels"] else "")
    if facts["dense"]:
        yield ""
        yield f"{'dense column':<24} {'least':>12} {'mean':>12} {'most':>12}"
        for name, d in facts["dense"].items():
            yield f"{name:<24} {d['least']:>12.5g} {d['mean']:>12.5g} {d['most']:>12.5g}"
    if facts["features"]:
        yield ""
        yield f"{'id feature':<24} {'ids/sample':>12} {'different':>12} {'seen once':>12}  most frequent"
    for name, f in facts["features"].items():
        top = ", ".join(f"{t['id']} ({t['count'] / max(1, samples):.2%})" for t in f["top"])
        length = "1" if f["kind"] == "one-hot" else f"{f['ids_per_sample']:.3g} (≤{f['longest']})"
        top += " (ids have weights)" if f["weighted"] else ""
        yield f"{name:<24} {length:>12} {f['different_ids']:>12,} {f['seen_once']:>12,}  {top}"


def _pyplot(path: Path) -> Any:
    """matplotlib's; before anything is read, as reading may take long."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot: got {path.name}, expected a name that ends with .png, .svg or .pdf")
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'persia-hpc[plot]'") from None
    return pyplot


def _plot(pyplot: Any, found: Inspection, path: Path) -> None:
    import numpy as np

    figure, axes = pyplot.subplots(figsize=(8, 6))
    # Neither a colour nor a dash alone tells more than ten features apart.
    colours = pyplot.rcParams["axes.prop_cycle"]
    axes.set_prop_cycle(pyplot.cycler(linestyle=["-", "--", ":", "-."]) * colours)
    for name, counts in found.features.items():
        curve = counts.ranked()["count"].to_numpy()
        # A curve of millions of ids is drawn by at most some hundreds of them.
        ranks = np.unique(np.geomspace(1, len(curve), 400).astype(np.int64)) if len(curve) else curve
        axes.plot(ranks, curve[ranks - 1] / max(1, found.num_samples), label=name, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rank of an id")
    axes.set_ylabel("share of samples that it appears in (repetitions counted)")
    axes.legend(fontsize="x-small", ncols=2)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"--plot: {path} can't be written ({error.strerror})") from error
    pyplot.close(figure)
