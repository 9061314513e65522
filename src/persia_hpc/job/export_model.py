"""Exports a run's dense model as a graph for other programs, and checks it against the run's predictions."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc._native import unmix
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.merged import CheckpointReader, MergedTable, key_ranges
from persia_hpc.durable import replace_whole
from persia_hpc.errors import PersiaError, UserError, needs_package
from persia_hpc.models.plain import LEAST_LENGTH, SCORES, PlainInput, PlainModel, plain_inputs, plain_tensors
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.user_objects import describe

if TYPE_CHECKING:
    from .loaded_run import LoadedRun

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2", "torchscript": "model.ts"}
VERSION = 1
TOLERANCE = 1e-5  # of fp32 models: other kernels sum in another order
NARROW_TOLERANCE = 2e-2  # of models trained with amp, whose predictions bf16 or fp16 rounds; a graph is fp32
CHECKED = (1, 2, 17, 256)  # samples of the batches that are compared
EXAMPLE = 5  # samples of the batch that is traced
KNOWN_IDS = 4096  # of a table, that are asked for
Run = Callable[[Sequence[Tensor]], Array]


def export_model(run: LoadedRun, to: str, out: Path) -> dict[str, Any]:
    """Writes the model from pooled vectors and dense features to predictions, and model.json, into a folder.

    to: "onnx", "torch-export" or "torchscript". Returns what model.json holds.
    Before anything is written the graph's predictions are compared with those of the run, on samples of
    several batch sizes with ids that were trained and others.
    Raises UserError for another format, a package that is missing and a model that can't be exported,
    PersiaError for a graph whose predictions differ.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    wanted = plain_inputs(run.inputs)
    if not wanted:
        raise UserError("the model has no inputs: the dataset has neither features nor dense columns")
    tolerance = TOLERANCE if run.config.train.amp == "off" else NARROW_TOLERANCE
    samples = _Samples(run)
    model = PlainModel(run.model(), run.inputs, run.layout.tasks).requires_grad_(False)
    tensors = tuple(plain_tensors(run.scorer.batch(samples.draw(EXAMPLE)), run.inputs))
    with _quiet(), torch.no_grad():
        try:
            content, compute = _MAKERS[to](model, tensors, wanted)
        except UserError:
            raise
        except Exception as error:  # torch has hundreds
            raise UserError(
                f"--to {to}: torch can't make a graph of the model {run.config.model.class_name!r}: "
                f"{' '.join(describe(error).split())[:300]}; docs/exporting.md says what a model may not do"
            ) from error
        worst = max(_difference(run, samples.draw(count), compute) for count in CHECKED)
    if not worst <= tolerance:
        raise PersiaError(
            f"--to {to}: the graph predicts otherwise than the run, by {worst:.2g}, expected at most "
            f"{tolerance:g}: a graph is of fixed operations, so the model may not decide by what its inputs "
            "hold or use offsets of jagged features; docs/exporting.md"
        )
    about = {
        "version": VERSION,
        "format": to,
        "file": FORMATS[to],
        "model": run.config.model.class_name,
        "step": run.step,
        "torch": torch.__version__,
        "inputs": [described.described() for described in wanted],
        "outputs": [{"name": SCORES, "shape": ["batch", run.inputs.num_outputs], "dtype": "float32"}],
        "columns": [name for task in run.layout.tasks.each for name in task.outputs],
        "pooling": {spec.name: spec.pooling for spec in run.inputs.features if spec.like is None},
        "max_length": {
            spec.name: spec.max_length for spec in run.inputs.features if spec.max_length is not None
        },
        "least_length": LEAST_LENGTH,
        "checked": {"samples": list(CHECKED), "largest_difference": worst, "tolerance": tolerance},
    }
    out.mkdir(parents=True, exist_ok=True)
    replace_whole(out / FORMATS[to], content)
    replace_whole(out / "model.json", json.dumps(about, indent=1).encode())
    return about


def _difference(run: LoadedRun, sample: SampleBatch, compute: Run) -> float:
    expected = run.scorer.predictions(sample)
    try:
        got = compute(plain_tensors(run.scorer.batch(sample), run.inputs))
    except Exception as error:
        raise PersiaError(
            f"the graph fails for {sample.num_samples} samples, as it was made from {EXAMPLE}: "
            f"{' '.join(describe(error).split())[:300]}; the model may not turn sizes into Python numbers"
        ) from error
    if got.shape != expected.shape:
        raise PersiaError(
            f"the graph predicts {list(got.shape)} numbers for {sample.num_samples} samples, expected "
            f"{list(expected.shape)}: the model may not turn sizes into Python numbers"
        )
    off: Array = np.abs(got - expected) / np.maximum(1.0, np.abs(expected))
    return float(off.max())


def _shapes(wanted: Sequence[PlainInput], named: bool) -> dict[str, Any]:
    """Returns which sizes of the inputs aren't fixed, as torch wants it.

    named: ONNX keeps the names. Exports of torch refuse them for lengths, for the sake of lengths of 0.
    """
    dims: dict[str, Any] = {}
    for described in wanted:
        for size in described.shape:
            if isinstance(size, str) and size not in dims:
                dims[size] = torch.export.Dim(f"size_{len(dims)}") if named else torch.export.Dim.DYNAMIC
    return {
        "tensors": tuple({i: dims[s] for i, s in enumerate(w.shape) if isinstance(s, str)} for w in wanted)
    }


def _torch_export(
    model: PlainModel, tensors: tuple[Tensor, ...], wanted: Sequence[PlainInput]
) -> tuple[bytes, Run]:
    program = torch.export.export(model, tensors, dynamic_shapes=_shapes(wanted, named=False), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    return buffer.getvalue(), lambda given: loaded(*given).numpy()


def _torchscript(
    model: PlainModel, tensors: tuple[Tensor, ...], wanted: Sequence[PlainInput]
) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, tensors, check_trace=False), buffer)  # type: ignore[no-untyped-call]
    buffer.seek(0)
    loaded = torch.jit.load(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue(), lambda given: loaded(*given).numpy()


def _onnx(model: PlainModel, tensors: tuple[Tensor, ...], wanted: Sequence[PlainInput]) -> tuple[bytes, Run]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise needs_package("--to onnx", "persia-hpc[export]") from error
    import onnxruntime

    program = torch.onnx.export(
        model,
        tensors,
        dynamo=True,
        dynamic_shapes=_shapes(wanted, named=True),
        input_names=[w.name for w in wanted],
        output_names=[SCORES],
        verbose=False,
        external_data=False,
    )
    assert program is not None
    content = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [w.name for w in wanted]
    known = {i.name for i in session.get_inputs()}

    def compute(given: Sequence[Tensor]) -> Array:
        feed = {name: t.numpy() for name, t in zip(names, given, strict=True) if name in known}
        scores: Array = session.run([SCORES], feed)[0]
        return scores

    return content, compute


_MAKERS = {"onnx": _onnx, "torch-export": _torch_export, "torchscript": _torchscript}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what tracing says of its own affairs; what goes wrong is found by comparison."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Samples:
    """Draws samples as the run's dataset could have them, with ids that were trained and a few others."""

    def __init__(self, run: LoadedRun) -> None:
        self._random = np.random.default_rng(run.config.seed)
        self._schema = run.schema
        table_of = {f.name: run.layout.tables[f.table].name for f in run.layout.features}
        with CheckpointReader(run.path, checked=True) as checkpoint:
            known = {name: _some_ids(table) for name, table in checkpoint.tables.items()}
        self._known = {name: known[table_of[name]] for name in run.schema.feature_names}
        self._most = {f.name: min(f.max_length or 20, 20) for f in run.inputs.features}
        self._streams = {
            name: stream for stream, names in run.config.features_of_sequences.items() for name in names
        }

    def draw(self, count: int) -> SampleBatch:
        random, ids = self._random, {}
        lengths: dict[str, Array] = {}
        for feature in self._schema.features:
            if not feature.multi:
                ids[feature.name] = IdColumn(self._ids(feature.name, count))
                continue
            stream = self._streams.get(feature.name, f".{feature.name}")
            if stream not in lengths:
                lengths[stream] = random.integers(0, self._most[feature.name] + 1, count)
            total = int(lengths[stream].sum())
            weights = random.uniform(0.5, 2, total).astype(np.float32) if feature.weighted else None
            ids[feature.name] = IdColumn.from_lengths(
                self._ids(feature.name, total), lengths[stream], weights
            )
        dense = random.normal(size=(count, len(self._schema.dense_names))).astype(np.float32)
        return SampleBatch(ids, dense, np.zeros((count, 0), np.float32))

    def _ids(self, feature: str, count: int) -> Array:
        known = self._known[feature]
        ids: Array = self._random.integers(0, 1 << 62, count, dtype=np.uint64)
        return np.where(self._random.random(count) < 0.9, self._random.choice(known, count), ids)


def _some_ids(table: MergedTable) -> Array:
    """Returns ids of a table; of a hashed one, whose keys name no ids, any."""
    for begin, end in key_ranges(table)[1]:
        keys = table.read(begin, end, columns=["keys"])["keys"]
        if len(keys):
            return unmix(np.ascontiguousarray(keys[:KNOWN_IDS]))
    return np.zeros(1, np.uint64)
